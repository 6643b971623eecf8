"""`recurra compare`: several settings on one text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro

from recurra.cli.markdown import table
from recurra.cli.parsing import given_options, parse, typed
from recurra.cli.settings import Settings
from recurra.config import CellName
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.comparison import Comparison, Contender, Row


@dataclass(frozen=True, kw_only=True)
class Compare(Settings):
    """Train several settings on one text, at equal minutes or equal tokens, with several seeds.

    All options of recurra train count for all contenders. Every run is kept and is one like any
    other; Ctrl-C saves, and the same command with --out goes on. Prints Markdown.
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, - for standard input, or corpus names (recurra data list). Without any, the
    bundled English story."""

    contender: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A cell's name, or options of recurra train in quotes, such as "--cell gru --lr 0.01"; once
    for each that is compared. Without any: rnn, gru and lstm."""

    seeds: int = 3
    """Runs of each contender; the first has --seed, the next that plus one."""

    num_tokens: int | None = None
    """Budget: tokens that every run learns from."""

    out: Path | None = None
    """The folder of the runs; by default a new one under runs/. The same comparison that lies there
    goes on."""

    force: bool = False
    """Replace what lies in the folder."""

    json: bool = False
    """Print a line of JSON for each run, the best contender's first."""

    quiet: bool = False
    """Show no progress."""


def run(arguments: Sequence[str]) -> int:
    """Train, and print what came out."""
    arguments = _joined(arguments)
    command = parse(Compare, "compare", arguments)
    from recurra.comparison import run_comparison
    from recurra.training.progress import ConsoleProgress, Progress

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
        for row in comparison.rows:
            for result in row.results:
                record = {"contender": row.contender.name, **result.to_dict()}
                print(json.dumps(record, ensure_ascii=False))
        return 0
    _print(comparison)
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
    from recurra.comparison import Contender

    name = typed(name)
    arguments = ["--cell", name] if name in get_args(CellName) else _split(name)
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
    if not arguments or not arguments[0].startswith("--"):
        cells = ", ".join(get_args(CellName))
        raise ConfigError(
            f"the contender {options!r} is neither a cell ({cells}) nor options of recurra train"
        )
    return arguments


def _print(comparison: Comparison) -> None:
    head = (
        "contender", "nats/token", "bits/char", "spread", "best", "runs", "parameters", "tokens",
        "seconds", "tokens/s",
    )  # fmt: skip
    print(table(head, [_cells(row) for row in comparison.rows]))
    print(
        "\nmeans over the runs, on the whole validation part with carried state; spread: standard"
        " deviation of bits/char between seeds; best: the lowest bits/char"
    )
    best, close = comparison.rows[0], comparison.as_good_as_the_best()
    if close:
        others = ", ".join(row.contender.name for row in close)
        print(f"too close to {best.contender.name} to tell with these seeds: {others}")
    print(f"runs in {comparison.folder}")


def _cells(row: Row) -> tuple[str, ...]:
    def mean(name: str, form: str) -> str:
        value = row.mean_of(name)
        return "-" if value is None else format(value, form)

    done = len(row.scores)
    failed = f" of {len(row.results)}" if done < len(row.results) else ""
    return (
        row.contender.name.replace("|", r"\|"),
        mean("nats_per_token", ".4f"),
        mean("bits_per_char", ".4f"),
        _shown(row.spread),
        _shown(min(row.scores, default=None)),
        f"{done}{failed}",
        mean("parameters", ",.0f"),
        mean("tokens", ",.0f"),
        mean("seconds", ".0f"),
        mean("tokens_per_second", ",.0f"),
    )


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"
