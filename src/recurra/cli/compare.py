"""`recurra compare`: train several variants of the settings on one text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from recurra.cli.parsing import decode_argument, parse
from recurra.cli.settings import Settings
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.config import RunOptions
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.experiments import Variant


@dataclass(frozen=True, kw_only=True)
class Compare(Settings):
    """Train several variants on one text with several seeds, and compare their validation losses.

    All runs have the same budget in minutes or in tokens. The options of recurra train apply to all
    variants. With a time budget (--minutes, 2 by default), unspecified settings are chosen once per
    variant, for its first seed. With --num-tokens, --steps or --epochs, they have the defaults of
    recurra train. Each run is written to a run directory. Ctrl-C saves a checkpoint; the same
    command with --out continues the comparison. The result is printed as a Markdown table.
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, directories or corpus names (see recurra data list). By default, the bundled English
    story."""

    variant: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["--contender"])
    ] = ()
    """A variant: the name of a cell, options of recurra train, or both, as one quoted argument such
    as "gru --lr 0.01". May be repeated. By default, rnn, gru and lstm are compared."""

    seeds: int = 3
    """Number of runs per variant; their seeds are consecutive, starting at --seed."""

    num_tokens: int | None = None
    """Budget: number of training tokens of each run."""

    equal_parameters: bool = False
    """Compare models of equal size: choose the hidden size of each variant but the first so that
    its number of parameters differs by at most 2% from that of the first, or as little as possible.
    Multiples of 16, 8, 4 and 2 units are preferred, in this order. By default, the hidden size is
    that of --hidden-size, or chosen for each variant if there is a time budget."""

    out: Path | None = None
    """Directory of the comparison; by default, a new directory in runs/. If the directory contains
    the same comparison, it is continued; with more --seeds, it is extended."""

    force: bool = False
    """Replace an existing comparison in the directory of --out."""

    json: bool = False
    """Print one line of JSON per run, starting with the best variant."""

    quiet: bool = False
    """Do not print progress."""


def run(arguments: Sequence[str]) -> int:
    """Run the comparison, print the result, and return the exit code."""
    arguments = _join_variants(arguments)
    command = parse(Compare, "compare", arguments)
    from recurra.experiments import Design, run_comparison
    from recurra.report.progress import ConsoleProgress, Progress

    names = command.variant or ("rnn", "gru", "lstm")
    variants = [_variant(name, command.to_options()) for name in names]
    comparison = run_comparison(
        command.sources,
        variants,
        Design(command.seeds, command.num_tokens, command.equal_parameters),
        command.out,
        Progress() if command.quiet else ConsoleProgress(),
        force=command.force,
    )
    if command.json:
        for record in comparison.records():
            print(json_line(record))
    else:
        print(safe_for_stdout(str(comparison)))
    return 0


def _join_variants(arguments: Sequence[str]) -> list[str]:
    """Join `--variant X` to `--variant=X`, so that an X that begins with `--` is read as a
    value."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--variant", "--contender"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _variant(name: str, common: RunOptions) -> Variant:
    """Return a variant: the common options, overridden by those in its name."""
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
