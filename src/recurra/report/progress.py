"""Progress callbacks of a training run, and their display in a terminal.

`Progress` is the interface; its methods do nothing. `ConsoleProgress` writes to stderr: a progress
bar on a terminal, and one line per evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from recurra.report.curve import draw
from recurra.text.unicode import without_controls


@dataclass(frozen=True)
class StepMetrics:
    """Progress of training after an update.

    Attributes:
        spent: fraction of the budget that is used.
        step: number of updates.
        train_nats: mean training loss in nats per token since the last evaluation.
        tokens_per_second: training throughput since the last evaluation.
        seconds_left: estimated remaining time.
    """

    spent: float
    step: int
    train_nats: float
    tokens_per_second: float
    seconds_left: float


class Progress:
    """Base class of progress callbacks; all methods do nothing.

    A progress object is also a context manager, which is active during training.

    Examples:
        >>> import recurra
        >>> from recurra.report.progress import Progress
        >>> class PrintReports(Progress):
        ...     def report(self, record):
        ...         print("step", record["step"])
        >>> lm = recurra.train(hidden_size=8, steps=4, report_every=2, progress=PrintReports())
        step 2
        step 4
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def plan(self, lines: Sequence[str]) -> None:
        """Handle the description of the run, before the first update."""

    def step(self, metrics: StepMetrics) -> None:
        """Handle the metrics of a finished training step."""

    def report(self, record: dict[str, Any]) -> None:
        """Handle a record of metrics.jsonl after an evaluation."""

    def sample(self, prompt: str, text: str) -> None:
        """Handle a generated sample: the continuation `text` of `prompt`."""

    def saving(self, text: str) -> None:
        """Handle a message about the size and the duration of checkpoints."""

    def message(self, text: str) -> None:
        """Handle a message for the user."""

    def finished(self, records: Sequence[dict[str, Any]]) -> None:
        """Handle the end of training, given all records of the run."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would exit the program. Continue training without output instead.
        self.quiet = True

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError:
            # The terminal was closed. Continue training without output.
            self.quiet = True


class ConsoleProgress(Progress):
    """Progress that writes to stderr.

    The progress bar and colours are used only on a terminal; NO_COLOR disables colours.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(stderr=True, highlight=False, emoji=False)
        self._bar = Bar(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def plan(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._print(line)

    def step(self, metrics: StepMetrics) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=1.0)
        bits = metrics.train_nats / math.log(2)
        self._bar.update(
            self._task,
            completed=min(metrics.spent, 1.0),
            description=(
                f"step {metrics.step:,}  perplexity {perplexity(metrics.train_nats):.2f}"
                f"  {bits:.3f} bits/token  {format_count(metrics.tokens_per_second)} tokens/s"
                f"  {format_seconds(metrics.seconds_left)} left"
            ),
        )

    def report(self, record: dict[str, Any]) -> None:
        self._print(describe(record))

    def sample(self, prompt: str, text: str) -> None:
        shown = Text("    ")
        shown.append(one_line(prompt), style="bold")
        shown.append(one_line(text), style="dim")
        shown.truncate(self.console.width if self.console.is_terminal else 200, overflow="ellipsis")
        self.console.print(shown, soft_wrap=True)

    def saving(self, text: str) -> None:
        self._print(text)

    def message(self, text: str) -> None:
        self._print(text)

    def finished(self, records: Sequence[dict[str, Any]]) -> None:
        curve = draw(records, width=max(min(self.console.width - 10, 60), 10))
        if curve:
            self._print(curve)

    def _print(self, text: str) -> None:
        # A message can contain the name of a file, and a file name any character.
        self.console.print(without_controls(text, but="\n\t"), markup=False, soft_wrap=True)


class Several(Progress):
    """Progress that forwards every call to several others."""

    def __init__(self, *others: Progress) -> None:
        self.others = others

    def __enter__(self) -> Self:
        for other in self.others:
            other.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for other in reversed(self.others):
            other.__exit__(kind, error, traceback)

    def plan(self, lines: Sequence[str]) -> None:
        for other in self.others:
            other.plan(lines)

    def step(self, metrics: StepMetrics) -> None:
        for other in self.others:
            other.step(metrics)

    def report(self, record: dict[str, Any]) -> None:
        for other in self.others:
            other.report(record)

    def sample(self, prompt: str, text: str) -> None:
        for other in self.others:
            other.sample(prompt, text)

    def saving(self, text: str) -> None:
        for other in self.others:
            other.saving(text)

    def message(self, text: str) -> None:
        for other in self.others:
            other.message(text)

    def finished(self, records: Sequence[dict[str, Any]]) -> None:
        for other in self.others:
            other.finished(records)


def describe(record: dict[str, Any]) -> str:
    """Return a record of metrics.jsonl as a line of text."""
    parts = [f"step {record['step']:>6,}", f"train {record['train_nats']:.3f}"]
    if record["val_nats"] is not None:
        parts.append(f"validation {record['val_nats']:.3f} nats")
    known = record["perplexity"]
    parts.append("perplexity inf" if known is None else f"perplexity {known:.2f}")
    if record["bits_per_char"] is not None:
        parts.append(f"{record['bits_per_char']:.3f} bits/char")
    parts.append(f"{format_count(record['tokens_per_second'])} tokens/s")
    return "  ".join(parts)


def perplexity(nats: float) -> float:
    """Return exp(nats), or infinity on overflow."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def format_seconds(seconds: float) -> str:
    """Return a duration as M:SS or H:MM:SS, such as 1:05 or 2:03:04."""
    whole = max(round(seconds), 0)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_count(number: float) -> str:
    """Return a number with a unit prefix, such as 987, 45.1k or 2.3M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def format_list(names: Sequence[str], limit: int = 10) -> str:
    """Return the first names and the number of the others: `a, b and 7 more`."""
    shown, more = ", ".join(names[:limit]), len(names) - limit
    return f"{shown} and {more:,} more" if more > 0 else shown


def one_line(text: str) -> str:
    """Return a text on one line, with line breaks and control characters made visible."""
    return without_controls(text.replace("\n", "⏎"))
