"""Markdown tables that are also readable in a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is left-aligned, the others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = "|".join(f"{'-' * (width + 1)}{':' if i else '-'}" for i, width in enumerate(widths))
    return "\n".join([_line(head, widths), f"|{rule}|", *(_line(line, widths) for line in lines)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
