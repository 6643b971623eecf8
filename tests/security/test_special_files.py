"""Run files that are pipes, directories, sockets, devices, or unreadable: rejected at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from security.corruption import (
    CONFIG,
    MODEL,
    VOCABULARY,
    assert_command_fails,
    assert_load_fails,
)

FILES = [CONFIG, VOCABULARY, MODEL]


def replace_by(kind: str, file: Path) -> None:
    """Replace a file by a special one."""
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "socket":
        import socket

        with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    else:
        file.symlink_to({"device": "/dev/zero", "terminal": "/dev/tty", "loop": file.name}[kind])


KINDS = ["fifo", "directory", "socket", "device", "terminal", "loop"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_load_special_file_is_rejected_without_blocking(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_by(kind, run / name)
    text = assert_load_fails(run, str(run))
    assert_command_fails(capsys, ["generate", run], text)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokens.json", "tokens.bin"])
def test_eval_special_token_file_is_rejected(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_by(kind, run / name)
    assert_command_fails(capsys, ["eval", run], name)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
def test_load_rejected_directory_leaves_no_open_file(run: Path) -> None:
    replace_by("directory", run / MODEL)
    assert_load_fails(run, MODEL)
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        assert_load_fails(run, "regular file")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root can read every file")
@pytest.mark.parametrize("name", FILES)
def test_load_unreadable_file_raises_run_error(run: Path, name: str) -> None:
    (run / name).chmod(0)
    assert_load_fails(run, f"cannot read .*{name}")
