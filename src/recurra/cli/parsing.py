"""Parse the arguments of a command into a dataclass."""

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

from recurra.cli.options import describe, format_help
from recurra.errors import ConfigError

Command = TypeVar("Command")

# tyro uses - and | if the encoding has no box-drawing characters.
_FRAME = "╭╮╰╯│─ |"
_MIN_COLUMNS, _DEFAULT_COLUMNS = 40, 100


def parse(command: type[Command], name: str, arguments: Sequence[str]) -> Command:
    """Parse the arguments of a command into its dataclass.

    Raises:
        ConfigError: an option is unknown or a value is invalid; the message is one line.
        SystemExit: `--help` was printed; the code is 0.
    """
    if {"-h", "--help"}.intersection(arguments):
        columns = shutil.get_terminal_size((_DEFAULT_COLUMNS, 24)).columns
        print(format_help(command, name, max(columns, _MIN_COLUMNS)), end="", flush=True)
        raise SystemExit(0)
    arguments = _with_joined_lists(command, arguments)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), _wide_terminal():
            return tyro.cli(
                command,
                prog=f"recurra {name}",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as exit_request:
        if exit_request.code in (0, None):
            raise
        message = _first_paragraph(output.getvalue())
        hint = f"recurra {name} --help lists the options"
        raise ConfigError(f"{message} ({hint})") from exit_request


def _with_joined_lists(command: type, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each list option, such as --stop, once, at the end.

    tyro would use only the last of several `--stop TEXT`, and ignore an option without values.

    Raises:
        ConfigError: a list option has no value.
    """
    options = [option for group in describe(command) for option in group.options]
    lists = {option.name for option in options if option.is_list}
    others: list[str] = []
    values: dict[str, list[str]] = {}
    current: list[str] | None = None
    for argument in arguments:
        name, is_assigned, value = argument.partition("=")
        name = name.replace("_", "-")
        if name in lists:
            current = values.setdefault(name, [])
            if is_assigned:
                current.append(value)
                current = None
        elif current is None or argument.startswith("--"):
            current = None
            others.append(argument)
        else:
            current.append(argument)
    for name, given in values.items():
        if not given:
            raise ConfigError(f"{name} needs at least one value")
        others += [name, *given]
    return others


def decode_argument(argument: str) -> str:
    """Return an argument decoded as UTF-8 if the locale (for example C) could not decode it."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):
            return os.fsencode(argument).decode("utf-8")
    return argument


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Make tyro print its error messages unwrapped, because they are parsed here."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _first_paragraph(output: str) -> str:
    """Return the first paragraph of a framed message of tyro, and the options that it suggests."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    # In an encoding without box-drawing characters, tyro draws its rules with hyphens.
    stripped = [re.sub("^-+$", "", row.strip(_FRAME)) for row in plain.split("\n")[1:]]
    rows = list(dropwhile(lambda row: not row, stripped))
    first = rows[: rows.index("")] if "" in rows else rows
    rest = rows[len(first) :]
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(first))
    if "Perhaps you meant:" in rest:
        similar = [row.split()[0] for row in rest if row.startswith("--")]
        message += f"; perhaps you meant {' or '.join(dict.fromkeys(similar))}"
    return message
