"""The command line in locales and terminals that know little, with names and texts of all kinds."""

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
    sys.platform != "linux", reason="other systems have no such locales and refuse such names"
)

TEXT = "雨落在屋顶 مرحبا 🙂\U0001f469\u200d\U0001f467 é\u0301 the cat\n" * 40
SOURCE = "雨é🙂".encode() + b"\xff.txt"
RUN = b"runs/\xff" + "雨".encode()
QUICK = [
    "--steps", "2", "--hidden-size", "4", "--batch-size", "2", "--num-steps", "8",
    "--sample-length", "4", "--device", "cpu", "--threads", "1",
]  # fmt: skip

# Without Python's own help a C locale is ASCII, for arguments, file names and standard streams.
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PLACES = {
    "ascii": {"LC_ALL": "C", **ASCII},
    "latin-1": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1", "TERM": "dumb", **ASCII},
    "utf-16": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-16"},
    "shift_jis": {"LC_ALL": "xx_YY.UTF-8", "PYTHONIOENCODING": "shift_jis", "COLUMNS": "1"},
}


class Place:
    """A folder, and a locale in which commands are given there."""

    def __init__(self, folder: Path, encoding: str) -> None:
        self.folder, self.encoding = folder, encoding
        own = {k: v for k, v in os.environ.items() if k not in ("LANG", "COLUMNS", "TERM")}
        self.environment = own | {"OMP_NUM_THREADS": "1"} | PLACES[encoding]

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

    def lines_of_json(self, *arguments: str | bytes) -> list[dict[str, Any]]:
        out, _ = self.recurra(*arguments, "--json")
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run, made where nothing but ASCII is known."""
    folder = tmp_path_factory.mktemp("place")
    (folder / os.fsdecode(SOURCE)).write_text(TEXT, "utf-8")
    place = Place(folder, "ascii")
    *_, result = place.lines_of_json("train", SOURCE, "--out", RUN, "--quiet", *QUICK)
    # However the locale reads it, the name has the bytes that were given.
    assert str(result["run"]).encode("utf-8", "surrogateescape") == RUN
    return folder


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, folder: Path) -> Place:
    return Place(folder, request.param)


def test_a_prompt_in_any_script_is_continued_in_any_locale(place: Place) -> None:
    options = ["--max-new-tokens", "40", "--seed", "1", "--prompt", "雨🙂é"]
    (written,) = place.lines_of_json("generate", RUN, *options)
    assert written["prompt"] == "雨🙂é"
    (sample,) = written["samples"]
    assert len(sample) == 40
    assert set(sample) <= set(TEXT)


def test_a_text_in_any_script_is_scored_in_any_locale(place: Place) -> None:
    *lines, total = place.lines_of_json("score", RUN, SOURCE)
    assert "".join(f"{line['text']}\n" for line in lines) == TEXT
    assert total["num_chars"] == len(TEXT)


def test_a_prompt_that_is_no_text_is_one_line(folder: Path) -> None:
    _, err = Place(folder, "utf-16").recurra("generate", RUN, "--prompt", b"\xff", code=1)
    assert "unknown symbol '\\udcff' at position 0" in err


def test_wrong_usage_is_one_readable_line_in_any_locale(place: Place) -> None:
    long = "a-file-name-that-is-longer-than-the-rows-of-a-narrow-terminal.txt"
    _, err = place.recurra("train", "--hiden-size", long, code=2)
    message = (
        f"recurra: Unrecognized options: --hiden-size, {long}; perhaps you meant --hidden-size"
    )
    assert err == f"{message} (recurra train --help lists the options)\n"


def test_help_and_lists_in_any_locale(place: Place) -> None:
    for arguments in (["--help"], ["runs", "--help"], ["data", "list"]):
        out, err = place.recurra(*arguments)
        assert len(out) > 100
        assert err == ""


def test_names_are_shown_as_they_are(
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
    page = os.fsdecode(b"\xff.html")
    assert main(["score", "[red]run", "--top", "1", "--html", page]) == 0
    assert "<title>?</title>" in Path(page).read_text("utf-8")


def test_a_name_of_two_lines_is_told_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two\nlines").write_bytes(b"\xff")
    assert main(["train", "two\nlines", *QUICK]) == 1
    _, err = capsys.readouterr()
    assert err.startswith("recurra: two\\nlines is not utf-8 text: byte 0xff at offset 0")
    assert err.count("\n") == 1
