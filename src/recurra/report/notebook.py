"""Progress of a training run in a Jupyter notebook: one display that is updated in place."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from recurra.io.html import escape
from recurra.report.progress import (
    ConsoleProgress,
    Progress,
    StepMetrics,
    describe,
    format_count,
    format_seconds,
    one_line,
    perplexity,
)
from recurra.runtime.interactive import notebook_display
from recurra.text.unicode import without_controls

SECONDS_BETWEEN_UPDATES = 0.5
"""Minimum time between two updates of the display that show only the step."""
_BAR_CHARACTERS = 24
_STYLE = "margin: 0; white-space: pre-wrap; overflow-wrap: anywhere"


def default_progress() -> Progress:
    """Return `NotebookProgress` in a Jupyter notebook, otherwise `ConsoleProgress`."""
    display = notebook_display()
    return ConsoleProgress() if display is None else NotebookProgress(display)


class NotebookProgress(Progress):
    """Progress in the output of a notebook cell.

    The output has a bar, the latest metrics, messages and samples, and the plan of the run in a
    section that can be unfolded. It stays the same size however long training takes.

    Args:
        display: the module IPython.display.
    """

    def __init__(self, display: Any) -> None:
        self._display = display
        self._id = uuid.uuid4().hex
        self._is_shown = False
        self._shown_at = -math.inf
        self._spent = 0.0
        self._step = self._report = ""
        self._plan: list[str] = []
        self._messages: list[str] = []
        self._samples: dict[str, str] = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._show()

    def plan(self, lines: Sequence[str]) -> None:
        self._plan += lines
        self._show()

    def step(self, metrics: StepMetrics) -> None:
        self._spent = min(metrics.spent, 1.0)
        self._step = (
            f"step {metrics.step:,}  perplexity {perplexity(metrics.train_nats):.2f}"
            f"  {format_count(metrics.tokens_per_second)} tokens/s"
            f"  {format_seconds(metrics.seconds_left)} left"
        )
        if time.monotonic() - self._shown_at >= SECONDS_BETWEEN_UPDATES:
            self._show()

    def report(self, record: dict[str, Any]) -> None:
        self._report = describe(record)
        self._show()

    def sample(self, prompt: str, text: str) -> None:
        self._samples[prompt] = one_line(prompt + text)
        self._show()

    def saving(self, text: str) -> None:
        self._plan.append(text)
        self._show()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._show()

    def finished(self, records: Sequence[dict[str, Any]]) -> None:
        self._spent = 1.0
        self._show()

    def _show(self) -> None:
        data = {"text/plain": self._as_text(), "text/html": self._as_html()}
        self._display.display(data, raw=True, display_id=self._id, update=self._is_shown)
        self._is_shown, self._shown_at = True, time.monotonic()

    def _lines(self) -> list[str]:
        lines = [self._step, self._report, *self._messages, *self._samples.values()]
        return [without_controls(line, but="\n\t") for line in lines if line]

    def _as_text(self) -> str:
        done = round(_BAR_CHARACTERS * self._spent)
        bar = "━" * done + "─" * (_BAR_CHARACTERS - done)
        return "\n".join([f"{bar} {self._spent:4.0%}", *self._lines()])

    def _as_html(self) -> str:
        plan = without_controls("\n".join(self._plan), but="\n\t")
        details = (
            f"<details><summary>settings</summary><pre style='{_STYLE}'>{escape(plan)}</pre>"
            "</details>"
            if plan
            else ""
        )
        return (
            f"<progress value='{self._spent:.3f}' max='1'></progress> {self._spent:.0%}"
            f"<pre style='{_STYLE}'>{escape(chr(10).join(self._lines()))}</pre>{details}"
        )
