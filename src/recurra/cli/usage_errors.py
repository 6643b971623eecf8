"""Rephrase the error messages of tyro in the terms of `--help`."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from recurra.cli.options import Option

_NUMBERS = {"INT": "an integer", "FLOAT": "a number"}
_MISSING_VALUE = re.compile(r"Missing value for argument '([^']*)'\. Expected .*")
_INVALID_CHOICE = re.compile(r"invalid choice (.*) for argument '([^']*)'\. Expected one of (.*)\.")
_NOT_A_NUMBER = re.compile(
    r"Error parsing (\S+): (?:invalid literal for int\(\) with base 10: (.*)"
    r"|could not convert string to float: (.*)"
    r"|(?:no type matching .* from|Could not find valid parse for arguments:) \[(.*)\]\.?)"
)
_UNRECOGNIZED = re.compile(r"Unrecognized options: (.*)")


def rephrase(message: str, options: Sequence[Option]) -> str:
    """Return a message of tyro in the terms of `--help`; an unknown message stays as it is.

    Args:
        message: the message, in one line.
        options: the options and positional arguments of the command.
    """
    if match := _MISSING_VALUE.fullmatch(message):
        return f"{_known_name(match[1], options)} needs a value"
    if match := _INVALID_CHOICE.fullmatch(message):
        choices = ", ".join(map(str, ast.literal_eval(match[3])))
        return f"{_known_name(match[2], options)} is {match[1]}; it must be one of {choices}"
    if match := _NOT_A_NUMBER.fullmatch(message):
        value = match[2] or match[3] or match[4]
        return f"{match[1]} is {value}; it must be {_kind(match[1], options)}"
    if match := _UNRECOGNIZED.fullmatch(message):
        first, *others = match[1].split(", ")
        if first.startswith("-"):
            return f"unknown option {first}"
        return f"unexpected argument{'s' if others else ''} {match[1]}"
    if message.startswith("Missing from "):
        required = [o for o in options if not o.name.startswith("-") and o.default == "required"]
        return f"missing argument: {', '.join(map(_described, required))}"
    return message.removeprefix("Error parsing ")


def _known_name(names: str, options: Sequence[Option]) -> str:
    """Return the name that `--help` shows, of an option with other names such as `--a/--b`."""
    known = {option.name for option in options}
    return next((name for name in names.split("/") if name in known), names)


def _kind(name: str, options: Sequence[Option]) -> str:
    values = (option.value.removesuffix(" ...") for option in options if option.name == name)
    return next((_NUMBERS[value] for value in values if value in _NUMBERS), "a valid value")


def _described(argument: Option) -> str:
    # The name of a choice, such as {build,clean}, needs no explanation.
    is_choice = argument.name.startswith("{")
    return argument.name if is_choice else f"{argument.name} ({argument.meaning.rstrip('.')})"
