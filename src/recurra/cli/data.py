"""`recurra data`: list and fetch the named corpora."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from recurra.cli.parsing import parse
from recurra.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Data:
    """List the named corpora, download one, or print the directories that are searched."""

    action: tyro.conf.Positional[Literal["list", "get", "where"]]
    """list prints all corpora; get NAME downloads a corpus, unless it is available locally, and
    prints its path; where prints the directories that are searched."""

    name: tyro.conf.Positional[str | None] = None
    """Name of the corpus to download; required by get."""

    json: bool = False
    """Print the result as JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the action and return the exit code."""
    command = parse(Data, "data", arguments)
    if (command.name is None) == (command.action == "get"):
        raise ConfigError("only get takes a name: recurra data get NAME")
    if command.action == "list":
        _list(command.json)
    elif command.action == "where":
        _where(command.json)
    else:
        assert command.name is not None
        _get(command.name, command.json)
    return 0


def _list(as_json: bool) -> None:
    from recurra.text import catalogue

    for name in catalogue.names():
        corpus = catalogue.describe(name)
        if as_json:
            record = {"name": name, "description": corpus.description, "licence": corpus.licence}
            print(json.dumps(record | {"bundled": corpus.bundled}, ensure_ascii=False))
        else:
            print(f"{name:<18} {corpus.description} ({corpus.licence})")


def _get(name: str, as_json: bool) -> None:
    from recurra.text import catalogue

    path = str(catalogue.locate(name))
    print(json.dumps({"name": name, "path": path}) if as_json else path)


def _where(as_json: bool) -> None:
    from recurra.io.files import cache_folder
    from recurra.text import catalogue

    data, cache = catalogue.data_folder(), cache_folder()
    if as_json:
        folder = None if data is None else str(data)
        print(json.dumps({"RECURRA_DATA": folder, "cache": str(cache)}))
        return
    print(f"RECURRA_DATA  {data or 'not set'}")
    print(f"cache         {cache}")
