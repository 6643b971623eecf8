"""`recurra score`: surprisal of each line and character of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli.parsing import parse
from recurra.cli.showing import shown
from recurra.config import UnknownRule

if TYPE_CHECKING:
    from recurra.inference.score import LineScore


@dataclass(frozen=True, kw_only=True)
class Score:
    """Print the surprise of each line of a text, in bits per character, the line beside it."""

    run: tyro.conf.Positional[str]
    """The run's folder."""

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, - for standard input, or corpus names; by default the run's own validation
    part."""

    top: int | None = None
    """Only this many lines, the most surprising first."""

    chars: bool = False
    """Every character with its bits: a row each, or with --json a list for each line."""

    html: Path | None = None
    """Write a page that shows every character shaded by its surprise."""

    unknown: UnknownRule = "replace"
    """What to do with a symbol that the model never saw."""

    device: str = "cpu"
    """Where to compute: auto, cpu, cuda, cuda:N or mps."""

    json: bool = False
    """Print JSON lines, one per line of the text; the last one sums up."""


def run(arguments: Sequence[str]) -> int:
    """Print the lines."""
    command = parse(Score, "score", arguments)
    from recurra.api import load
    from recurra.report.score_page import score_html

    lm = load(command.run, command.device)
    score = lm.score(lm.read(command.sources), unknown=command.unknown)
    if command.html is not None:
        page = score_html(score, title=command.html.stem)
        # The file's own name may hold what is not UTF-8.
        command.html.write_text(page, encoding="utf-8", errors="replace")
    for line in score.lines if command.top is None else score.top(command.top):
        _print_line(line, command)
    if command.json:
        total = {"total_bits": score.total_bits, "num_chars": len(score.text)}
        print(json.dumps(total | {"bits_per_char": score.bits_per_char}))
    return 0


def _print_line(line: LineScore, command: Score) -> None:
    if command.json:
        record: dict[str, Any] = {
            "line": line.number,
            "bits": line.bits,
            "bits_per_char": line.bits_per_char,
        }
        if command.chars:
            record["surprisal"] = line.surprisal.tolist()
        print(json.dumps(record | {"text": line.text}, ensure_ascii=False))
        return
    print(f"{line.bits_per_char:8.3f}  {line.number:>6}  {shown(line.text)}")
    if command.chars:
        for character, bits in zip(line.text + "\n", line.surprisal, strict=False):
            print(f"{bits:8.3f}  {'':>6}  {character!r}")
