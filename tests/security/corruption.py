"""Functions that corrupt the files of a run, and assertions about the resulting errors."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recurra
from recurra.cli.main import main
from recurra.errors import RunError

TEXT = "the cat sat on the mat.\n" * 20


SECONDS, MEGABYTES = 10.0, 200.0
"""Limits on the time and the memory that rejecting one corrupted run may take.

The largest corruption takes 0.9 s of processor time on an idle machine and up to 2.3 s on a busy
one. A reader with quadratic cost would need minutes.
"""


CONFIG, VOCABULARY, MODEL = "config.json", "vocabulary.json", "model.safetensors"


Corruption = Callable[[Path], object]


def edit(name: str, *path: str, value: Any) -> Corruption:
    """Return a function that sets one field of a JSON file of a run."""

    def corrupt(run: Path) -> None:
        record = json.loads((run / name).read_text("utf-8"))
        section = record
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
        (run / name).write_text(json.dumps(record), "utf-8")

    return corrupt


def write(name: str, data: bytes | Callable[[], bytes]) -> Corruption:
    """Return a function that replaces a file of a run by these bytes."""
    return lambda run: (run / name).write_bytes(data if isinstance(data, bytes) else data())


def grow(name: str, size: int) -> Corruption:
    """Return a function that extends a file to `size` bytes without allocating disk space."""
    return lambda run: os.truncate(run / name, size)


def nested(levels: int) -> bytes:
    return b'{"text": ' + b"[" * levels + b"]" * levels + b"}"


def word_vocabulary(count: int) -> Callable[[], bytes]:
    tokens = ["<unk>", *(f" {number:x}" for number in range(count))]
    return lambda: json.dumps({"kind": "word", "tokens": tokens}).encode()


def assert_load_fails(run: Path, message: str) -> str:
    """Assert that loading the run raises one short RunError in time; return its message."""
    started = time.process_time()
    with pytest.raises(RunError, match=message) as caught:
        recurra.load(run)
    assert time.process_time() - started < SECONDS
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def assert_command_fails(
    capsys: pytest.CaptureFixture[str], arguments: list[str | Path], *expected: str
) -> None:
    """Assert that a command exits with 1 and prints one line with these words to stderr."""
    assert main(list(map(str, arguments))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recurra: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in expected:
        assert part in err
