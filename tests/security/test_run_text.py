"""Untrusted token files and metrics raise one RunError each."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import recurra
from recurra.data.token_file import load_token_file
from recurra.errors import RunError
from recurra.io.json_files import MAX_LINES_BYTES
from security.corruption import (
    SECONDS,
    Corruption,
    assert_command_fails,
    edit,
    grow,
    nested,
    write,
)

TOKEN_CORRUPTIONS: dict[str, tuple[Corruption, str]] = {
    "dtype object": (edit("tokens.json", "dtype", value="object"), "dtype is 'object'"),
    "signed dtype": (edit("tokens.json", "dtype", value="int8"), "dtype is 'int8'"),
    "no dtype": (edit("tokens.json", "dtype", value=None), "dtype is None"),
    "negative num_tokens": (edit("tokens.json", "num_tokens", value=-1), "num_tokens is -1"),
    "num_tokens a float": (edit("tokens.json", "num_tokens", value=480.0), "num_tokens is 480.0"),
    "num_tokens a string": (edit("tokens.json", "num_tokens", value="480"), "num_tokens is '480'"),
    "num_tokens 2**63": (edit("tokens.json", "num_tokens", value=2**63), "num_tokens is 9223"),
    "num_tokens one too large": (
        edit("tokens.json", "num_tokens", value=481),
        "has 480 bytes instead of 481",
    ),
    "num_tokens 2**40": (
        edit("tokens.json", "num_tokens", value=2**40),
        "has 480 bytes instead of 1099",
    ),
    "num_train too large": (edit("tokens.json", "num_train", value=481), "num_train is 481"),
    "val_chars too large": (edit("tokens.json", "val_chars", value=481), "val_chars is 481"),
    "num_chars larger than num_bytes": (
        edit("tokens.json", "num_chars", value=481),
        "num_chars is 481",
    ),
    "val_bytes too large": (edit("tokens.json", "val_bytes", value=481), "val_bytes is 481"),
    "sources of another type": (edit("tokens.json", "sources", value=[1]), r"sources is \[1\]"),
    "short sha256": (edit("tokens.json", "sha256", value="00"), "sha256 is '00'"),
    "source_bytes a string": (
        edit("tokens.json", "source_bytes", value="1"),
        "source_bytes is '1'",
    ),
    "source_complete an integer": (
        edit("tokens.json", "source_complete", value=3),
        "source_complete is 3",
    ),
    "ids outside the vocabulary": (
        lambda run: (run / "tokens.bin").write_bytes(b"\xff" * 480),
        "has the id 255",
    ),
    "truncated ids": (
        lambda run: os.truncate(run / "tokens.bin", 479),
        "has 479 bytes instead of 480",
    ),
    "nested 100,000 deep": (
        write("tokens.json", nested(100_000)),
        "is damaged: it is nested too deeply",
    ),
    "duplicate key": (
        write("tokens.json", b'{"version": 1, "version": 1}'),
        "'version' .*repeated",
    ),
    "1 GiB of JSON": (grow("tokens.json", 1 << 30), "is too large"),
}


@pytest.mark.parametrize("name", TOKEN_CORRUPTIONS)
def test_validate_corrupted_token_file_raises_run_error(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt, message = TOKEN_CORRUPTIONS[name]
    corrupt(run)
    started = time.process_time()
    with pytest.raises(RunError, match=rf"tokens\.(json|bin) .*{message}") as caught:
        recurra.load(run).validate()
    assert time.process_time() - started < SECONDS
    assert_command_fails(capsys, ["eval", run], str(caught.value))


def test_token_file_verify_detects_changed_ids(run: Path) -> None:
    tokens = load_token_file(run)
    tokens.verify()
    data = bytearray((run / "tokens.bin").read_bytes())
    data[100] ^= 1
    (run / "tokens.bin").write_bytes(data)
    with pytest.raises(RunError, match=r"tokens\.bin has changed"):
        tokens.verify()


RECORD = {"step": 1, "seconds": 1, "train_nats": 1, "tokens_per_second": 1, "val_nats": 1,
        "bits_per_char": 1, "perplexity": 1}  # fmt: skip


LINE_CORRUPTIONS: dict[str, tuple[bytes, str]] = {
    "duplicate key": (b'{"step": 1, "step": 2}\n', "'step' .*repeated .*line 1"),
    "nested 9,999 deep": (b'{"step": ' + b"[" * 9999 + b"]" * 9999 + b"}\n", "too deeply"),
    "a list": (b"[]\n", "JSON object"),
    "no step": (b"{}\n", "line 1 is damaged"),
    "missing fields": (b'{"step": 1}\n', "seconds is"),
    "NaN": (b'{"step": NaN}\n', "NaN"),
    "not UTF-8": (b"\xff\n", "is damaged"),
    "a long line": (b" " * 5_000_000 + b"\n", "line 1 is too long"),
    "many lines": (
        json.dumps(RECORD).encode() + b"\n" + (b'{"step": 1}' + b" " * 900_000 + b"\n") * 80,
        "is too large|is damaged",
    ),
}


@pytest.mark.parametrize("name", LINE_CORRUPTIONS)
def test_read_metrics_corrupted_lines_raise_run_error(run: Path, name: str) -> None:
    from recurra.runs.directory import RunDirectory

    data, message = LINE_CORRUPTIONS[name]
    (run / "metrics.jsonl").write_bytes(data)
    with pytest.raises(RunError, match=rf"metrics\.jsonl.*{message}"):
        RunDirectory(run).read_metrics()


def test_read_lines_oversized_file_raises(run: Path) -> None:
    from recurra.io.json_files import read_lines

    line = json.dumps({"step": 1, "x": "x" * 1_000_000}).encode() + b"\n"
    with (run / "metrics.jsonl").open("wb") as file:
        for _ in range(MAX_LINES_BYTES // len(line) + 1):
            file.write(line)
    with pytest.raises(RunError, match="is too large"):
        for _ in read_lines(run / "metrics.jsonl"):
            pass
