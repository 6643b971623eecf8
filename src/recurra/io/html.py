"""HTML fragments for notebooks: escaped text and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def escape(text: str) -> str:
    """Return a text as HTML that shows it unchanged."""
    return html.escape(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table. The cells are plain text, which is escaped.

    Args:
        head: the titles of the columns; empty for a table without titles.
        rows: the cells. The first column is left-aligned, the others are right-aligned.
    """
    titles = f"<thead><tr>{_cells('th', head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table>{titles}<tbody>{body}</tbody></table>"


def _cells(tag: str, cells: Sequence[str]) -> str:
    return "".join(
        f'<{tag} style="text-align: {"right" if index else "left"}">{escape(cell)}</{tag}>'
        for index, cell in enumerate(cells)
    )
