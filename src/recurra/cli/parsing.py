"""Parse the arguments of a command into a dataclass."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from typing import TypeVar

import tyro

from recurra.cli.main import terminal_columns
from recurra.cli.options import Option, describe, format_help
from recurra.cli.usage_errors import rephrase
from recurra.errors import ConfigError

Command = TypeVar("Command")

# tyro uses - and | if the encoding has no box-drawing characters.
_FRAME = "╭╮╰╯│─ |"


def parse(command: type[Command], name: str, arguments: Sequence[str]) -> Command:
    """Parse the arguments of a command into its dataclass.

    Raises:
        ConfigError: an option is unknown or a value is invalid; the message is one line.
        SystemExit: `--help` was printed; the code is 0.
    """
    if {"-h", "--help"}.intersection(arguments):
        print(format_help(command, name, terminal_columns()), end="", flush=True)
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
        message = _first_paragraph(output.getvalue(), _options(command))
        hint = f"recurra {name} --help lists the options"
        raise ConfigError(f"{message} ({hint})") from exit_request


def _with_joined_lists(command: type, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each list option, such as --stop, once, at the end.

    tyro would use only the last of several `--stop TEXT`, and ignore an option without values.

    Raises:
        ConfigError: a list option has no value.
    """
    lists = {option.name for option in _options(command) if option.is_list}
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


def _options(command: type) -> list[Option]:
    return [option for group in describe(command) for option in group.options]


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


def _first_paragraph(output: str, options: Sequence[Option]) -> str:
    """Return the first paragraph of a framed message of tyro, rephrased, and its suggestions."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    # In an encoding without box-drawing characters, tyro draws its rules with hyphens.
    stripped = [re.sub("^-+$", "", row.strip(_FRAME)) for row in plain.split("\n")[1:]]
    rows = list(dropwhile(lambda row: not row, stripped))
    first = rows[: rows.index("")] if "" in rows else rows
    rest = rows[len(first) :]
    message = rephrase(" ".join(first), options)
    if "Perhaps you meant:" in rest:
        similar = [row.split()[0] for row in rest if row.startswith("--")]
        message += f"; perhaps you meant {' or '.join(dict.fromkeys(similar))}"
    return message
