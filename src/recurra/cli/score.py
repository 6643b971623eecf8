"""`recurra score`: surprisal of each line and character of a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli.parsing import parse
from recurra.cli.reading import shown_progress
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.config import UnknownRule
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.inference.score import LineScore
    from recurra.inference.score import Score as TextScore

MAX_NAMES = 3
"""Number of sources in the title of the page."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Print the surprisal of each line of a text, in bits per character.

    Each row contains the bits per character, the line number and the line.
    """

    run: tyro.conf.Positional[str]
    """Run directory."""

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, directories, corpus names (see recurra data list), or - for standard input. By
    default, the validation split of the run."""

    top: int | None = None
    """Print only this many lines, those with the highest bits per character, in descending order.
    Blank lines are left out."""

    chars: bool = False
    """Also print the bits of each character: one row per character, or a list per line with
    --json."""

    html: Path | None = None
    """Write an HTML page with the most surprising lines and the text, shaded by surprisal; with
    --top, only these lines."""

    unknown: UnknownRule = "replace"
    """Handling of symbols that are not in the vocabulary: report an error, or replace them by
    <unk>."""

    device: str = "cpu"
    """Device: auto (the CPU, which is faster for a single stream of tokens), cpu, cuda, cuda:N or
    mps."""

    json: bool = False
    """Print one line of JSON per line of the text, and a final line with the totals."""


def run(arguments: Sequence[str]) -> int:
    """Score the text, print its lines, and return the exit code."""
    command = parse(Score, "score", arguments)
    if command.top is not None and command.top < 0:
        raise ConfigError(f"--top is {command.top}; it must not be negative")
    from recurra.api import load
    from recurra.inference.evaluate import unknown_remark
    from recurra.report.score_page import score_page

    lm = load(command.run, command.device)
    text = lm.read(command.sources)
    with shown_progress() as progress:
        score = lm.score(text, unknown=command.unknown, progress=progress)
    if command.html is not None:
        page = score_page(score, _title(command), model=_name(command.run), top=command.top)
        # The title is the name of a file, which need not be valid UTF-8.
        command.html.write_text(page, encoding="utf-8", errors="replace")
    for line in score.lines if command.top is None else score.top(command.top):
        _print_line(line, command)
    if command.json:
        print(json_line(_totals(score)))
    if remark := unknown_remark(score.unknown_share, "tokens"):
        print(f"note: {remark}", file=sys.stderr)
    return 0


def _title(command: Score) -> str:
    """Return the names of the sources."""
    if not command.sources:
        return f"validation split of {_name(command.run)}"
    names = ["standard input" if name == "-" else _name(name) for name in command.sources]
    further = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {further:,} more" if further > 0 else "")


def _name(path: str) -> str:
    return Path(path).resolve().name or path


def _totals(score: TextScore) -> dict[str, Any]:
    return {
        "total_bits": score.total_bits,
        "num_chars": len(score.text),
        "bits_per_char": score.bits_per_char,
        "num_tokens": score.num_tokens,
        "num_unknown": score.num_unknown,
        "unknown_share": score.unknown_share,
    }


def _print_line(line: LineScore, command: Score) -> None:
    if command.json:
        record: dict[str, Any] = {
            "line": line.number,
            "bits": line.bits,
            "bits_per_char": line.bits_per_char,
        }
        if command.chars:
            record["surprisal"] = line.surprisal.tolist()
        print(json_line(record | {"text": line.text}))
        return
    print(f"{line.bits_per_char:8.3f}  {line.number:>6}  {safe_for_stdout(line.text)}")
    if command.chars:
        for character, bits in zip(line.text + "\n", line.surprisal, strict=False):
            print(f"{bits:8.3f}  {'':>6}  {character!r}")
