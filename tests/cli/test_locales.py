"""The command line in restricted locales and terminals, with names and texts in any script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recurra.cli.main import main

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs POSIX locales and file names of any bytes"
)

TEXT = "雨落在屋顶 مرحبا 🙂\U0001f469\u200d\U0001f467 é\u0301 the cat\n" * 40
SOURCE = "雨é🙂".encode() + b"\xff.txt"
RUN = b"runs/\xff" + "雨".encode()
QUICK = [
    "--steps", "2", "--hidden-size", "4", "--batch-size", "2", "--num-steps", "8",
    "--sample-length", "4", "--device", "cpu", "--threads", "1",
]  # fmt: skip

# Without UTF-8 mode and locale coercion, the C locale is ASCII for arguments, names and streams.
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {
    "ascii": {"LC_ALL": "C", **ASCII},
    "latin-1": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1", "TERM": "dumb", **ASCII},
    "utf-16": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-16"},
    "shift_jis": {"LC_ALL": "xx_YY.UTF-8", "PYTHONIOENCODING": "shift_jis", "COLUMNS": "1"},
}


class Locale:
    """A working directory and the locale in which commands run there."""

    def __init__(self, folder: Path, encoding: str) -> None:
        self.folder, self.encoding = folder, encoding
        outer = {k: v for k, v in os.environ.items() if k not in ("LANG", "COLUMNS", "TERM")}
        self.environment = outer | {"OMP_NUM_THREADS": "1"} | LOCALES[encoding]

    def recurra(self, *arguments: str | bytes, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "recurra", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, timeout=60,
        )  # fmt: skip
        out, err = done.stdout.decode(self.encoding), done.stderr.decode(self.encoding)
        assert done.returncode == code, err
        assert "Traceback" not in err
        if code:
            assert out == ""
            assert err.startswith("recurra: ")
            assert err.count("\n") == 1
        return out, err

    def json_records(self, *arguments: str | bytes) -> list[dict[str, Any]]:
        out, _ = self.recurra(*arguments, "--json")
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory with a text and a run in an ASCII locale."""
    folder = tmp_path_factory.mktemp("directory")
    (folder / os.fsdecode(SOURCE)).write_text(TEXT, "utf-8")
    locale = Locale(folder, "ascii")
    *_, result = locale.json_records("train", SOURCE, "--out", RUN, "--quiet", *QUICK)
    # The name keeps its bytes, however the locale decodes them.
    assert str(result["run"]).encode("utf-8", "surrogateescape") == RUN
    return folder


@pytest.fixture(params=LOCALES)
def locale(request: pytest.FixtureRequest, folder: Path) -> Locale:
    return Locale(folder, request.param)


def test_generate_prompt_in_any_script_and_locale(locale: Locale) -> None:
    options = ["--max-new-tokens", "40", "--seed", "1", "--prompt", "雨🙂é"]
    (record,) = locale.json_records("generate", RUN, *options)
    assert record["prompt"] == "雨🙂é"
    (sample,) = record["samples"]
    assert len(sample) == 40
    assert set(sample) <= set(TEXT)


def test_score_text_in_any_script_and_locale(locale: Locale) -> None:
    *lines, total = locale.json_records("score", RUN, SOURCE)
    assert "".join(f"{line['text']}\n" for line in lines) == TEXT
    assert total["num_chars"] == len(TEXT)


def test_generate_undecodable_prompt_error_is_one_line(folder: Path) -> None:
    _, err = Locale(folder, "utf-16").recurra("generate", RUN, "--prompt", b"\xff", code=1)
    assert "'\\udcff' at position 0" in err


def test_train_unknown_option_error_is_one_line_in_any_locale(locale: Locale) -> None:
    long = "a-file-name-that-is-longer-than-the-rows-of-a-narrow-terminal.txt"
    _, err = locale.recurra("train", "--hiden-size", "3", code=2)
    for word in ("--hiden-size", "--hidden-size", "recurra train --help"):
        assert word in err
    _, err = locale.recurra("generate", "run", long, code=2)
    assert f"unexpected argument {long} (" in err


def test_help_and_data_list_in_any_locale(locale: Locale) -> None:
    for arguments in (["--help"], ["runs", "--help"], ["data", "list"]):
        out, err = locale.recurra(*arguments)
        assert len(out) > 100
        assert err == ""


def test_runs_and_score_do_not_interpret_markup_in_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "[bold]:cat:[/x].txt"
    Path("[bold]:cat:[").mkdir()
    Path(source).write_text(TEXT, "utf-8")
    assert main(["train", source, "--out", "[red]run", "--quiet", *QUICK]) == 0
    assert main(["runs", "."]) == 0
    out, _ = capsys.readouterr()
    assert f"[red]run  {source}  lstm" in out
    page, copy = os.fsdecode(b"\xff.html"), os.fsdecode(b"<b>\xff.txt")
    Path(copy).write_text(TEXT, "utf-8")
    assert main(["score", "[red]run", copy, "--top", "1", "--html", page]) == 0
    shown = Path(page).read_text("utf-8")
    assert "<title>&lt;b&gt;?.txt</title>" in shown
    assert "scored by [red]run" in shown


def test_train_error_escapes_newline_in_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two\nlines").write_bytes(b"\xff")
    assert main(["train", "two\nlines", *QUICK]) == 1
    _, err = capsys.readouterr()
    assert err.startswith("recurra: two\\nlines ")
    assert "0xff at offset 0" in err
    assert err.count("\n") == 1
