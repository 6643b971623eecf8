"""`recurra compare`: train several settings on one text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from recurra.cli.parsing import decode_argument, parse
from recurra.cli.settings import Settings
from recurra.config import RunOptions
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.experiments import Variant


@dataclass(frozen=True, kw_only=True)
class Compare(Settings):
    """Train several settings on one text, at equal minutes or equal tokens, with several seeds.

    The options of recurra train apply to all variants. With a budget in minutes (2 by default),
    options that are not given are chosen once for each variant, for its first seed; with
    --num-tokens, --steps or --epochs they have the defaults below. Every run is kept in a run
    directory. Ctrl-C saves, and the same command with --out continues. Prints Markdown.
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, or corpus names (recurra data list). Without any, the bundled English
    story."""

    variant: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["--contender"])
    ] = ()
    """The name of a cell, options of recurra train, or both, in quotes, such as "gru --lr 0.01".
    Repeat it for each variant; without any, rnn, gru and lstm are compared."""

    seeds: int = 3
    """Runs of each variant; the first has --seed, the next --seed plus one."""

    num_tokens: int | None = None
    """Budget: tokens that every run learns from."""

    out: Path | None = None
    """The folder of the runs; by default a new one under runs/. If it has the same comparison,
    that one continues."""

    force: bool = False
    """Replace the contents of the directory."""

    json: bool = False
    """Print a line of JSON for each run, the best variant first."""

    quiet: bool = False
    """Show no progress."""


def run(arguments: Sequence[str]) -> int:
    """Train, and print what came out."""
    arguments = _joined(arguments)
    command = parse(Compare, "compare", arguments)
    from recurra.experiments import run_comparison
    from recurra.report.progress import ConsoleProgress, Progress

    names = command.variant or ("rnn", "gru", "lstm")
    variants = [_variant(name, command.to_options()) for name in names]
    comparison = run_comparison(
        command.sources,
        variants,
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
    """Join --variant X to --variant=X, because X may begin with -- and would not be a value."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--variant", "--contender"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _variant(name: str, common: RunOptions) -> Variant:
    """Return a variant with its own options, and the common ones where it has none."""
    from recurra.experiments import Variant

    name = decode_argument(name)
    try:
        own = parse(Settings, "train", _split(name)).to_options()
        return Variant(name, common.replaced(**own.values))
    except ConfigError as error:
        raise ConfigError(f"the variant {name!r}: {error}") from None


def _split(options: str) -> list[str]:
    try:
        arguments = shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"the variant {options!r}: {error}") from error
    if not arguments:
        raise ConfigError("a variant is the name of a cell, options of recurra train, or both")
    return arguments if arguments[0].startswith("--") else ["--cell", *arguments]
