"""Validation functions that the configuration dataclasses share."""

from __future__ import annotations

import re
from collections.abc import Collection
from reprlib import repr as shortened
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from recurra.errors import ConfigError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MAX_FLOAT = 3.4028234e38
"""The largest finite fp32 number."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_known(
    field: str, value: Any, known: Collection[str], register: str | None = None
) -> None:
    """Raise ConfigError unless the value of a field is one of the known names.

    Args:
        field: the name of the field.
        value: its value.
        known: the known names.
        register: the public function that adds a name, if there is one.
    """
    other = f"; register it with {register} first, if it is your own" if register else ""
    require(
        isinstance(value, str) and value in known,
        f"{field} is {shortened(value)}; it must be one of {', '.join(known)}{other}",
    )


def require_new_name(kind: str, name: Any, built_in: Collection[str]) -> None:
    """Raise ConfigError unless a cell or an optimizer can be registered under a name.

    Args:
        kind: what is registered, for messages.
        name: the name.
        built_in: the names that recurra uses itself.
    """
    require(
        isinstance(name, str) and _NAME.fullmatch(name) is not None,
        f"the name {name!r} of the {kind} must start with a letter and consist of ASCII letters,"
        " digits, - and _",
    )
    require(name not in built_in, f"recurra itself has the {kind} {name}; choose another name")


def require_choices(config: Any, **choices: Any) -> None:
    """Raise ConfigError unless each named field has one of the values of its Literal."""
    for name, literal in choices.items():
        value, allowed = getattr(config, name), get_args(literal)
        require(
            value in allowed,
            f"{name} is {shortened(value)}; it must be one of {', '.join(map(str, allowed))}",
        )


def require_types(config: Any) -> None:
    """Raise ConfigError unless each field has a value of its declared type.

    Values come from Python or from a `config.json`, so the declared types are not guaranteed.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if get_origin(allowed[0]) is not Literal:
            require(
                any(_is_a(value, kind) for kind in allowed),
                f"{name} is {shortened(value)}; it must be {_in_words(allowed)}",
            )


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_a(each, item) for each in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _in_words(kinds: tuple[Any, ...]) -> str:
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return " or ".join(
        words.get(kind, "None" if kind is NoneType else _tuple_in_words(kind, words))
        for kind in kinds
    )


def _tuple_in_words(kind: Any, words: dict[Any, str]) -> str:
    item = words.get(get_args(kind)[0] if get_args(kind) else None)
    return "a tuple" if item is None else f"a tuple in which each item is {item}"
