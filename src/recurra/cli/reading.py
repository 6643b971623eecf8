"""Show the progress of reading a text on stderr: a bar on a terminal, otherwise lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_LINE_SECONDS = 10.0
"""Seconds until the first line if stderr is not a terminal. Each interval is twice the previous."""


@contextmanager
def shown_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many tokens of how many have been read.

    The bar is removed at the end. Short texts are read before anything is shown.
    """
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from recurra.report.progress import format_count

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(done: int, total: int) -> None:
            text = f"{format_count(done)} of {format_count(total)} tokens  {done / total:.0%}"
            bar.update(task, completed=done, total=total, description=text)

        yield show


class _Lines:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._wait = FIRST_LINE_SECONDS

    def __call__(self, done: int, total: int) -> None:
        from recurra.report.progress import format_count, format_seconds

        elapsed = time.monotonic() - self._started
        if elapsed < self._wait or done == total:
            return
        self._wait = 2 * elapsed
        left = format_seconds(elapsed * (total - done) / done)
        text = f"read {format_count(done)} of {format_count(total)} tokens, {left} left"
        print(f"recurra: {text}", file=sys.stderr, flush=True)
