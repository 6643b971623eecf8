"""Describe the options of a command for `--help` and docs/cli.md.

The descriptions are derived from the dataclass of the command: names, types and defaults from its
fields, and the meaning from the docstrings of the fields. `parsing.py` reads the same fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

_VALUE_NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_LEFT_COLUMN = 26


@dataclass(frozen=True)
class Option:
    """One option or positional argument.

    Attributes:
        name: `--hidden-size`, or the metavar of a positional argument.
        value: metavar of the value; empty for a flag or a positional argument.
        default: the default as typed on the command line, or `none`, `off` or `required`.
        meaning: the docstring of the field, in one line.
    """

    name: str
    value: str
    default: str
    meaning: str

    @property
    def is_list(self) -> bool:
        """Whether several values follow the option, as in `--stop TEXT ...`."""
        return self.value.endswith(" ...")


@dataclass(frozen=True)
class Group:
    """A titled list of options, such as those of `ModelConfig`."""

    title: str
    options: tuple[Option, ...]


def describe(command: type) -> list[Group]:
    """Return the options of a command: first those of its dataclass, then those of its sections."""
    positional, own, sections = [], [], []
    for name, hint, default, meaning in _fields(command):
        if dataclasses.is_dataclass(hint):
            # Generated classes have no defaults and docstrings; those of the configuration apply.
            section: Any = getattr(hint, "described_by", hint)
            title = f"{section.__name__.removesuffix('Config').lower()} options"
            options = tuple(_option(*values) for values in _fields(section))
            sections.append(Group(title, options))
        elif _is_positional(hint):
            positional.append(_positional(name, hint, default, meaning))
        else:
            own.append(_option(name, hint, default, meaning))
    groups = [Group("arguments", tuple(positional)), Group("options", tuple(own)), *sections]
    return [group for group in groups if group.options]


def usage(command: type, name: str) -> str:
    """Return the usage line of a command."""
    groups = describe(command)
    arguments = [o.name for group in groups if group.title == "arguments" for o in group.options]
    return " ".join(["recurra", name, "[OPTIONS]", *arguments])


def summary(command: type) -> str:
    """Return the docstring of a command with each paragraph on one line."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def format_help(command: type, name: str, columns: int) -> str:
    """Return the text that `recurra COMMAND --help` prints."""
    paragraphs = [f"usage: {usage(command, name)}"]
    paragraphs += [textwrap.fill(text, columns) for text in summary(command).split("\n\n")]
    for group in describe(command):
        entries = [_entry(option, columns) for option in group.options]
        if group.title == "options":
            entries.append(_entry(Option("-h, --help", "", "off", "Print this help."), columns))
        paragraphs.append("\n".join([f"{group.title}:", *entries]))
    return "\n\n".join(paragraphs) + "\n"


def _entry(option: Option, columns: int) -> str:
    left = f"  {option.name} {option.value}".rstrip()
    # A text such as "By default, ..." describes what happens without a value.
    is_described = option.default == "none" and "default" in option.meaning.lower()
    shows_default = option.default not in ("off", "required") and not is_described
    text = option.meaning + (f" (default: {option.default})" if shows_default else "")
    indent = " " * min(_LEFT_COLUMN, columns // 3)
    if len(left) + 2 <= len(indent):
        left, first = "", left.ljust(len(indent))
    else:
        left, first = left + "\n", indent
    wrapped = textwrap.fill(
        text, columns, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )
    return left + wrapped


def _fields(owner: type) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the name, type hint, default and meaning of each field that is an option."""
    hints = get_type_hints(owner, include_extras=True)
    meanings = _docstrings(owner)
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if tyro.conf.Suppress not in metadata_of(hint):
            yield field.name, hint, field.default, meanings.get(field.name, "")


def _docstrings(owner: type) -> dict[str, str]:
    """Return the docstring of each field, including the fields of base classes."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


def _option(name: str, hint: Any, default: Any, meaning: str) -> Option:
    kind = type_of(hint)
    value = "" if kind is bool else _value_name(kind)
    if get_origin(kind) is tuple and tyro.conf.UseAppendAction not in metadata_of(hint):
        value += " ..."
    shown = "required" if default is dataclasses.MISSING else _as_typed(default)
    names = (getattr(item, "name", None) for item in metadata_of(hint))
    written = next((other for other in names if other), name.replace("_", "-"))
    return Option(f"--{written}", value, shown, meaning)


def _positional(name: str, hint: Any, default: Any, meaning: str) -> Option:
    kind = type_of(hint)
    metavars = (getattr(item, "metavar", None) for item in metadata_of(hint))
    metavar = next((metavar for metavar in metavars if metavar), None)
    if metavar is None:
        metavar = _value_name(kind) if get_origin(kind) is Literal else name.upper()
        if get_origin(kind) is tuple:
            metavar = f"{metavar.removesuffix('S')} ..."
        metavar = metavar if default is dataclasses.MISSING else f"[{metavar}]"
    shown = "required" if default is dataclasses.MISSING else _as_typed(default)
    return Option(metavar, "", shown, meaning)


def metadata_of(hint: Any) -> tuple[Any, ...]:
    """Return the metadata of `Annotated[type, metadata, ...]`; empty for other hints."""
    return getattr(hint, "__metadata__", ())


def _is_positional(hint: Any) -> bool:
    return tyro.conf.Positional in metadata_of(hint)


def type_of(hint: Any) -> Any:
    """Return a type hint without `Annotated` metadata and without `None`."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is not Literal and NoneType in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return hint


def _value_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return _VALUE_NAMES[kind]


def _as_typed(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if default is False:
        return "off"
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    if isinstance(default, str) and (not default or not default.isprintable()):
        return json.dumps(default)
    return str(default)
