"""Backslash escapes in options, list options, and stop strings that cannot occur."""

import json
import shutil
import subprocess

import pytest

from recurra.cli.escapes import unescape
from recurra.cli.main import main
from recurra.errors import ConfigError


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    "argument",
    [r"\n", r"a\tb", r"\\n", r"\\", "\\", r"\x41\u732b\U0001f469", r"\xe7\x8c\xab", r"\101", r"\q",
     r"\a\b\e\E\f\r\v\"\?", r"\u41g", "猫"],
)  # fmt: skip
def test_unescape_gives_the_text_of_the_shell(argument):
    quoted = argument.replace("'", r"\'") + ("\\" if argument == "\\" else "")
    command = ["bash", "-c", f"printf %s $'{quoted}'"]
    done = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert unescape("--stop", argument) == done.stdout.decode()


@pytest.mark.parametrize("argument", [r"\xff", r"\ud800", r"\UFFFFFFFF", "\udcff"])
def test_unescape_invalid_text_raises(argument):
    with pytest.raises(ConfigError, match=r"--stop is .* not valid UTF-8"):
        unescape("--stop", argument)


def test_generate_stop_newline_ends_at_line(run, capsys):
    arguments = ["generate", run, "--max-new-tokens", "300", "--seed", "3"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.count("\n") > 1
    for stop in (r"\n", r"\x0a", "\n"):
        assert main([*arguments, "--stop", stop]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == (text[: text.index("\n") + 1], "")


def test_generate_impossible_stop_string_is_reported(run, capsys):
    assert main(["generate", run, "--max-new-tokens", "5", "--stop", "t猫", "--stop", r"\\n"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "recurra: the stop string 't猫' cannot occur: '猫' is not in the vocabulary",
        r"recurra: the stop string '\\n' cannot occur: '\\' is not in the vocabulary",
    ]


def test_generate_repeated_list_options_are_joined(run, capsys):
    arguments = ["generate", "--stop", "a", r"\n", "--stop=b", run, "--seed", "1", "--stop", "c"]
    assert main([*arguments, "--json", "--max-new-tokens", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["stop"] == ["a", "\n", "b", "c"]


def test_list_option_without_values_is_rejected(tmp_path, run, source, fails):
    for option in ("--lr-milestones", "--lr_milestones"):
        out = tmp_path / "new"
        fails(["train", source, "--out", out, option, "--steps", "3"], 2, "--lr-milestones")
        assert not out.exists()
    fails(["generate", run, "--stop"], 2, "--stop needs at least one value")


def test_train_separator_escape_is_replaced(tmp_path, source, quick, capsys):
    other = tmp_path / "other.txt"
    other.write_text("the hat\n" * 50, "utf-8")
    out = tmp_path / "new"
    arguments = ["train", source, str(other), "--out", str(out), "--quiet", *quick]
    assert main([*arguments, "--separator", r"\t\n"]) == 0
    assert json.loads((out / "config.json").read_text("utf-8"))["text"]["separator"] == "\t\n"


def test_generate_prompt_has_no_escapes(run, fails):
    fails(["generate", run, "--prompt", r"the\n"], 1, "'\\\\' at position 3", "$'...\\n...'")
