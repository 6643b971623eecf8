"""Parse options from dataclasses, the same way for every command."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from typing import TypeVar

import tyro

from recurra.errors import ConfigError

Command = TypeVar("Command")

# tyro draws with - and | where the encoding has nothing better.
_FRAME = "╭╮╰╯│─ |"
# In a terminal of one column tyro would never come to an end.
_LEAST_COLUMNS, _USUAL_COLUMNS, _COMPLAINT_COLUMNS = 40, 100, 1_000_000


def parse(
    command: type[Command],
    verb: str,
    arguments: Sequence[str],
    *,
    default: Command | None = None,
) -> Command:
    """Read the options of a verb into its dataclass; `--help` prints and leaves with 0.

    What is not given is as in `default`, or else as the dataclass has it.

    Raises:
        ConfigError: an unknown option, or an invalid value, in one line.
    """
    if _asks_for_help(arguments):
        arguments = ["--help"]  # tyro would leave out what was given already
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _columns(arguments):
            return tyro.cli(
                command,
                prog=f"recurra {verb}",
                args=list(arguments),
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        message = f"{_in_one_line(complaint.getvalue())} (recurra {verb} --help lists the options)"
        raise ConfigError(message) from leaving


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"}.intersection(arguments))


def given_options(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the options that stand among the arguments, as fields are named."""
    options = (argument for argument in arguments if argument.startswith("--"))
    return frozenset(option[2:].split("=")[0].replace("-", "_") for option in options)


def typed(argument: str) -> str:
    """A text from the command line; read as UTF-8 where the locale (C, say) could not read it."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):
            return os.fsencode(argument).decode("utf-8")
    return argument


@contextlib.contextmanager
def _columns(arguments: Sequence[str]) -> Iterator[None]:
    """Tell tyro how wide the terminal is, by which it draws its frames.

    Help is wrapped. Error messages are parsed here, so they must not be wrapped.
    """
    before, columns = os.environ.get("COLUMNS"), _COMPLAINT_COLUMNS
    if _asks_for_help(arguments):
        columns = max(shutil.get_terminal_size((_USUAL_COLUMNS, 24)).columns, _LEAST_COLUMNS)
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _in_one_line(complaint: str) -> str:
    """What tyro draws in a frame: its first paragraph, and the options it suggests."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    # Its rules are rows of hyphens where it has no better, and there the title has one, too.
    stripped = [re.sub("^-+$", "", row.strip(_FRAME)) for row in plain.split("\n")[1:]]
    rows = list(dropwhile(lambda row: not row, stripped))
    first = rows[: rows.index("")] if "" in rows else rows
    rest = rows[len(first) :]
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(first))
    if "Perhaps you meant:" in rest:
        near = [row.split()[0] for row in rest if row.startswith("--")]
        message += f"; perhaps you meant {' or '.join(dict.fromkeys(near))}"
    return message
