"""`recurra compare`: train several settings on one text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from recurra.cli.parsing import decode_argument, given_options, parse
from recurra.cli.settings import Settings
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.experiments import Contender


@dataclass(frozen=True, kw_only=True)
class Compare(Settings):
    """Train several settings on one text, at equal minutes or equal tokens, with several seeds.

    All options of recurra train count for all contenders. With a budget in minutes (2 by default)
    what is not given is chosen for each contender once, for its first seed; with --num-tokens,
    --steps or --epochs it has the defaults below. Every run is kept and is one like any other;
    Ctrl-C saves, and the same command with --out continues. Prints Markdown.
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, or corpus names (recurra data list). Without any, the bundled English
    story."""

    contender: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A cell's name, or options of recurra train, or both, in quotes, such as "gru --lr 0.01"; once
    for each that is compared. Without any: rnn, gru and lstm."""

    seeds: int = 3
    """Runs of each contender; the first has --seed, the next that plus one."""

    num_tokens: int | None = None
    """Budget: tokens that every run learns from."""

    out: Path | None = None
    """The folder of the runs; by default a new one under runs/. If it has the same comparison,
    that one continues."""

    force: bool = False
    """Replace the contents of the directory."""

    json: bool = False
    """Print a line of JSON for each run, the best contender's first."""

    quiet: bool = False
    """Show no progress."""


def run(arguments: Sequence[str]) -> int:
    """Train, and print what came out."""
    arguments = _joined(arguments)
    command = parse(Compare, "compare", arguments)
    from recurra.experiments import run_comparison
    from recurra.report.progress import ConsoleProgress, Progress

    names = command.contender or ("rnn", "gru", "lstm")
    contenders = [_contender(name, command, given_options(arguments)) for name in names]
    comparison = run_comparison(
        command.sources,
        contenders,
        command.seeds,
        command.num_tokens,
        command.out,
        Progress() if command.quiet else ConsoleProgress(),
        force=command.force,
    )
    if command.json:
        for record in comparison.records():
            print(json.dumps(record, ensure_ascii=False))
    else:
        print(comparison)
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """--contender X as --contender=X: an X that begins with -- would be taken for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--contender":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _contender(name: str, command: Compare, given: frozenset[str]) -> Contender:
    from recurra.experiments import Contender

    name = decode_argument(name)
    arguments = _split(name)
    default = Settings(text=command.text, model=command.model, training=command.training)
    try:
        own = parse(Settings, "train", arguments, default=default)
    except ConfigError as error:
        raise ConfigError(f"the contender {name!r}: {error}") from None
    return Contender(name, own.to_config(), given | given_options(arguments))


def _split(options: str) -> list[str]:
    try:
        arguments = shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"the contender {options!r}: {error}") from error
    if not arguments:
        raise ConfigError("a contender is a cell's name, or options of recurra train, or both")
    return arguments if arguments[0].startswith("--") else ["--cell", *arguments]
