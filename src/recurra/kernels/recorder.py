"""Record a sequence of calls and replay it.

Training steps of one shape call the same functions on the same memory; only values change.
Replaying a recording skips the Python code around the calls, which for a small model takes as long
as its arithmetic. CUDA graphs do the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Do = Callable[..., None]
"""A function that is called as do(function, *arguments, **options) and makes that call."""


def at_once(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call the function without recording the call."""
    function(*arguments, **options)


class Program:
    """A recorded sequence of calls; it keeps their arguments alive."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], Any]] = []

    def do(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call the function, and record the call if it succeeds."""
        call = partial(function, *arguments, **options)
        call()
        self._calls.append(call)

    def run(self) -> None:
        """Replay the calls."""
        for call in self._calls:
            call()
