"""Record a sequence of calls and replay it.

Between two training steps only numbers change: the same functions are called with the same memory.
Recorded, they cost no more than their own time; to decide on them anew costs a small model as
long as its arithmetic. CUDA graphs do the same for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Do = Callable[..., None]
"""do(function, *arguments, **options): calls the function, whose result is not needed."""


def at_once(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call it, and forget it."""
    function(*arguments, **options)


class Program:
    """What was called through it, in that order.

    Holds the arguments, and so the memory they point to.
    """

    def __init__(self) -> None:
        self._calls: list[Callable[[], Any]] = []

    def do(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call it, and remember the call if it succeeds."""
        call = partial(function, *arguments, **options)
        call()
        self._calls.append(call)

    def run(self) -> None:
        """The same calls again."""
        for call in self._calls:
            call()
