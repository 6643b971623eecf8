"""`recurra data`: list and fetch the named corpora."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from recurra.cli.parsing import parse
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.errors import ConfigError, CorpusError


@dataclass(frozen=True, kw_only=True)
class Data:
    """List the named corpora, download one, or print the directories that are searched."""

    action: tyro.conf.Positional[Literal["list", "get", "where"]]
    """list prints all corpora, with path and size of those on this machine; get NAME downloads a
    corpus, unless it is available locally, and prints its path; where prints the directories that
    are searched."""

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
        path = _local_path(name)
        if as_json:
            record = {
                "name": name,
                "description": corpus.description,
                "licence": corpus.licence,
                "bundled": corpus.bundled,
                "path": None if path is None else str(path),
                "num_bytes": corpus.num_bytes if path is None else path.stat().st_size,
            }
            print(json_line(record))
            continue
        where = _to_download(corpus.num_bytes) if path is None else _size_and_path(path)
        print(f"{name:<18} {corpus.description} ({corpus.licence})\n{'':<18} {where}")


def _local_path(name: str) -> Path | None:
    """Return the path of a corpus on this machine; None if it has none or it cannot be read."""
    from recurra.text import catalogue

    try:
        return catalogue.find(name)
    except CorpusError as error:
        logging.getLogger("recurra").warning("%s", error)
        return None


def _size_and_path(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes  {safe_for_stdout(str(path))}"


def _to_download(num_bytes: int | None) -> str:
    return f"{num_bytes or 0:,} bytes  not on this machine, downloaded on first use"


def _get(name: str, as_json: bool) -> None:
    from recurra.text import catalogue

    path = str(catalogue.locate(name))
    print(json_line({"name": name, "path": path}) if as_json else safe_for_stdout(path))


def _where(as_json: bool) -> None:
    from recurra.io.files import cache_folder
    from recurra.text import catalogue

    data, cache = catalogue.data_folder(), cache_folder()
    if as_json:
        folder = None if data is None else str(data)
        print(json_line({"RECURRA_DATA": folder, "cache": str(cache)}))
        return
    print(safe_for_stdout(f"RECURRA_DATA  {data or 'not set'}\ncache         {cache}"))
