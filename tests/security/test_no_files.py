"""What stands where a file should and is none: pipes, devices, sockets, what may not be read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from security.attacks import (
    CONFIG,
    MODEL,
    VOCABULARY,
    fails,
    refused,
)

FILES = [CONFIG, VOCABULARY, MODEL]


def become(kind: str, file: Path) -> None:
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "socket":
        import socket

        with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    else:
        file.symlink_to({"device": "/dev/zero", "terminal": "/dev/tty", "loop": file.name}[kind])


KINDS = ["fifo", "folder", "socket", "device", "terminal", "loop"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_not_waited_for(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    become(kind, run / name)
    text = refused(run, str(run))
    fails(capsys, ["generate", run], text)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokens.json", "tokens.bin"])
def test_the_text_is_no_file(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    become(kind, run / name)
    fails(capsys, ["eval", run], name)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
def test_refusing_what_is_no_file_leaves_nothing_open(run: Path) -> None:
    become("folder", run / MODEL)
    refused(run, MODEL)
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        refused(run, "is not a regular file")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read(run: Path, name: str) -> None:
    (run / name).chmod(0)
    refused(run, f"cannot read .*{name}")
