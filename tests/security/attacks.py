"""Manipulations of the files of a run, and the errors that are expected."""

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
"""Limits of one refusal. The largest attack takes 0.9 s of processor time on an idle machine and up
to 2.3 s on a busy one; a reader whose work grew quadratically would need minutes."""


CONFIG, VOCABULARY, MODEL = "config.json", "vocabulary.json", "model.safetensors"


Attack = Callable[[Path], object]


def edit(name: str, *path: str, value: Any) -> Attack:
    """Set one field of a JSON file."""

    def attack(run: Path) -> None:
        record = json.loads((run / name).read_text("utf-8"))
        place = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (run / name).write_text(json.dumps(record), "utf-8")

    return attack


def write(name: str, data: bytes | Callable[[], bytes]) -> Attack:
    return lambda run: (run / name).write_bytes(data if isinstance(data, bytes) else data())


def grow(name: str, size: int) -> Attack:
    """Make a file huge that takes no place on the disk."""
    return lambda run: os.truncate(run / name, size)


def deep(levels: int) -> bytes:
    return b'{"text": ' + b"[" * levels + b"]" * levels + b"}"


def words(count: int) -> Callable[[], bytes]:
    tokens = ["<unk>", *(f" {number:x}" for number in range(count))]
    return lambda: json.dumps({"kind": "word", "tokens": tokens}).encode()


def refused(run: Path, message: str) -> str:
    started = time.process_time()
    with pytest.raises(RunError, match=message) as caught:
        recurra.load(run)
    assert time.process_time() - started < SECONDS
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str | Path], *expected: str) -> None:
    """The command leaves with 1 and one line on stderr that has these words."""
    assert main(list(map(str, arguments))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recurra: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in expected:
        assert part in err
