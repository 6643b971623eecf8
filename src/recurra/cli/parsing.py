"""How options are read from dataclasses, the same way for every verb."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from recurra.errors import ConfigError

Command = TypeVar("Command")

# tyro draws with - and | where the encoding has nothing better.
_FRAME = "╭╮╰╯│─ |"


def parse(command: type[Command], verb: str, arguments: Sequence[str]) -> Command:
    """Read the options of a verb into its dataclass; `--help` prints and leaves with 0.

    Raises:
        ConfigError: an unknown option, or a value that will not do, in one line.
    """
    if not sys.stdout.isatty():
        # tyro draws its frames as wide as it believes the terminal to be.
        os.environ.setdefault("COLUMNS", "100")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                command,
                prog=f"recurra {verb}",
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        message = f"{_in_one_line(complaint.getvalue())} (recurra {verb} --help lists the options)"
        raise ConfigError(message) from leaving


def _in_one_line(complaint: str) -> str:
    """What tyro draws in a frame: its first paragraph, and the options it suggests."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", row).strip(_FRAME) for row in complaint.splitlines()[1:]]
    first = rows[: rows.index("")] if "" in rows else rows
    rest = rows[len(first) :]
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(first))
    if "Perhaps you meant:" in rest:
        near = [row.split()[0] for row in rest if row.startswith("--")]
        message += f"; perhaps you meant {' or '.join(dict.fromkeys(near))}"
    return message
