"""Search for the fastest useful model on a machine by a few short measurements of training steps.

On a CPU, only the hidden size is searched, because the throughput in operations per second hardly
depends on anything else. On a GPU, small models and batches leave most of the processor idle, so
precisions and batch sizes are measured too. A larger batch is chosen only if it processes more
useful tokens, see `recipe_rules.useful_tokens`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from recurra.config import RunConfig, RunOptions
from recurra.kernels import library
from recurra.kernels.matmul_selection import bf16_speedup
from recurra.recurrence.backends import Requirements, find_backend
from recurra.recurrence.cells import find_cell
from recurra.recurrence.precision import PRECISIONS
from recurra.training.recipe_rules import (
    batch_sizes,
    choose_size,
    num_updates,
    useful_tokens,
    with_size,
)
from recurra.training.recipe_table import (
    MAX_TRIAL_SHARE,
    MIN_SPEEDUP,
    MIN_UPDATES,
    MachineRecipe,
    recipe_for,
)
from recurra.training.trials import TrialError, attempt

Trial = Callable[[RunConfig], float]
"""Returns the floating-point operations of matrix products in a second of training."""


@dataclass(frozen=True)
class SearchTask:
    """The text, the device and the time for which the settings are chosen.

    Attributes:
        options: the settings that were given, and those that depend on no measurement.
        num_ids: number of tokens in the training part of the text.
        device: the device that trains.
        seconds: available time for training steps.
    """

    options: RunOptions
    num_ids: int
    device: torch.device
    seconds: float

    @property
    def table(self) -> MachineRecipe:
        """The recipe of the device."""
        return recipe_for(self.device)


@dataclass(frozen=True)
class SearchResult:
    """Settings that were chosen by measurement.

    Attributes:
        options: the settings, without those that depend on the number of tokens.
        speed: measured operations per second.
        seconds: time that the measurements on a GPU took.
        remark: the measured speeds of the other precisions, in parentheses; empty without any.
    """

    options: RunOptions
    speed: float
    seconds: float = 0.0
    remark: str = ""


def search_on_cpu(task: SearchTask, trial: Trial) -> SearchResult:
    """Choose the hidden size and the precision for a CPU by two measurements.

    Args:
        task: the text, the device and the time.
        trial: measures a configuration on the device.
    """
    table, options = task.table, task.options
    rows = batch_sizes(options, task.num_ids, table)[0]
    options = options.filled(batch_size=rows)
    sized = _with_kernel_precision(with_size(options, table.first_size), task.device)
    speed = 0.0
    # The throughput depends on the size, so it is measured again with the size chosen first.
    for _ in range(2):
        speed = trial(sized.config)
        size = choose_size(options, task.num_ids, speed * task.seconds, table)
        sized = _with_kernel_precision(with_size(options, size), task.device)
    remark = ""
    if not options.is_given("precision"):
        remark = _describe_precision(sized.config, task.device)
    return SearchResult(sized, speed, remark=remark)


def search_on_gpu(task: SearchTask, trial: Trial) -> SearchResult:
    """Choose the hidden size, the batch size and the precision for a GPU.

    Args:
        task: the text, the device and the time.
        trial: measures a configuration on the device.

    Raises:
        TrialError: not even the smallest batch can be trained.
    """
    return _Search(task, trial).run()


def _with_kernel_precision(options: RunOptions, device: torch.device) -> RunOptions:
    """Return options with the precision that was measured to be the faster one at this size."""
    speedup = None if options.is_given("precision") else _bf16_speedup(options.config, device)
    is_faster = speedup is not None and speedup >= MIN_SPEEDUP
    return options.filled(precision="bf16" if is_faster else "fp32")


def _describe_precision(config: RunConfig, device: torch.device) -> str:
    """Return the measured speed of bf16 relative to fp32 at this size, in parentheses."""
    if (speedup := _bf16_speedup(config, device)) is None:
        return ""
    is_faster = speedup >= MIN_SPEEDUP
    return f" ({speedup:.2f}x as fast)" if is_faster else f" (bf16: {speedup:.2f}x)"


def _bf16_speedup(config: RunConfig, device: torch.device) -> float | None:
    """Return the speed of a layer in bf16 relative to fp32, or None where bf16 has no kernels."""
    model = config.model
    needs = Requirements(find_cell(model.cell), device, has_zoneout=model.zoneout > 0.0)
    is_chosen = model.backend in ("auto", "native") and needs.cell.reads_state
    is_supported = is_chosen and find_backend("native").unsupported(needs) is None
    if not is_supported or model.residual or not library.is_available():
        return None
    return bf16_speedup(model.cell, model.hidden_size, config.training.batch_size)


@dataclass(frozen=True)
class _Candidate:
    """Settings with their measured operations per second."""

    options: RunOptions
    speed: float


@dataclass
class _Search:
    """A coordinate search: first over the precisions, then twice over the sizes and batch sizes.

    Attributes:
        task: the task.
        trial: measures a configuration.
        failure: why the last measurement failed.
    """

    task: SearchTask
    trial: Trial
    failure: str = ""
    _started: float = field(default_factory=lambda: time.perf_counter())
    _warm: float = math.inf
    _measured: dict[RunConfig, float | None] = field(default_factory=dict)

    def run(self) -> SearchResult:
        """Return the best candidate."""
        best, speeds = self._first()
        fixed = self.task.options.filled(precision=best.options.config.model.precision)
        best = self._with_size_and_batch(fixed, best)
        return SearchResult(best.options, best.speed, self._elapsed(), self._remark(best, speeds))

    def _first(self) -> tuple[_Candidate, dict[str, float]]:
        """Measure all precisions at the first size, with a smaller batch if memory is too small.

        Returns:
            The candidate with the chosen precision, and the speed of each precision.
        """
        task = self.task
        rows = [n for n in self._batch_sizes() if n <= task.table.first_batch_size]
        sized = with_size(task.options, task.table.first_size)
        for batch_size in reversed(rows or self._batch_sizes()[:1]):
            found = [
                candidate
                for name in self._precisions()
                if (candidate := self._measure(sized.filled(precision=name, batch_size=batch_size)))
            ]
            if found:
                speeds = {c.options.config.model.precision: c.speed for c in found}
                return _fastest(found), speeds
        raise TrialError(self.failure)

    def _precisions(self) -> Iterable[str]:
        options = self.task.options
        if options.is_given("precision"):
            return [options.config.model.precision]
        return [name for name in self.task.table.precisions if name in PRECISIONS]

    def _batch_sizes(self) -> list[int]:
        return batch_sizes(self.task.options, self.task.num_ids, self.task.table)

    def _with_size_and_batch(self, fixed: RunOptions, start: _Candidate) -> _Candidate:
        """Choose the size and the batch size, starting from a measured candidate."""
        best = start
        # The throughput depends on both, so both are chosen again with the measured speed.
        for _ in range(2):
            rows = best.options.config.training.batch_size
            size = choose_size(
                fixed.filled(batch_size=rows),
                self.task.num_ids,
                self._operations(best),
                self.task.table,
            )
            sized = with_size(fixed, size)
            if (found := self._with_best_batch(sized, rows)) is not None:
                best = found
            elif self._is_late():
                # Without time for a measurement, the last measured speed is the best estimate.
                return _Candidate(sized.filled(batch_size=rows), best.speed)
        return best

    def _with_best_batch(self, sized: RunOptions, rows: int) -> _Candidate | None:
        """Return the candidate with the most useful tokens; None if nothing could be measured.

        The number of useful tokens increases with the batch size up to a maximum and then
        decreases, so the search in each direction ends at the first decrease. A batch that does not
        fit into memory counts as a decrease.
        """
        all_rows = self._batch_sizes()
        index = all_rows.index(rows)
        best = self._measure(sized.filled(batch_size=rows))
        larger = [] if best is None else all_rows[index + 1 :]
        for others in (larger, all_rows[:index][::-1]):
            for other in others:
                candidate = self._measure(sized.filled(batch_size=other))
                if best is not None and self._tokens(candidate) <= self._tokens(best):
                    break
                best = candidate or best
        return best

    def _measure(self, options: RunOptions) -> _Candidate | None:
        """Return the measured candidate, or None if it cannot train or no time is left."""
        if options.config not in self._measured:
            if self._is_late():
                return None
            try:
                self._measured[options.config] = attempt(self.trial, options.config)
            except TrialError as error:
                self.failure = str(error)
                self._measured[options.config] = None
            if len(self._measured) == 1:
                self._warm = time.perf_counter()
        speed = self._measured[options.config]
        return None if speed is None else _Candidate(options, speed)

    def _is_late(self) -> bool:
        """Return whether the time for measurements is over.

        The first measurement does not count, because it also loads the GPU libraries, which
        training would load anyway.
        """
        return time.perf_counter() - self._warm > MAX_TRIAL_SHARE * self.task.seconds

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _operations(self, candidate: _Candidate) -> float:
        return candidate.speed * max(self.task.seconds - self._elapsed(), 0.0)

    def _tokens(self, candidate: _Candidate | None) -> float:
        """Return the number of useful tokens, reduced if there are less than `MIN_UPDATES`."""
        if candidate is None:
            return 0.0
        config, operations = candidate.options.config, self._operations(candidate)
        updates = num_updates(config, self.task.num_ids, operations)
        few = min(1.0, updates / MIN_UPDATES)
        return few * useful_tokens(config, self.task.num_ids, operations)

    def _remark(self, best: _Candidate, speeds: dict[str, float]) -> str:
        """Return the speeds of the other precisions relative to the chosen one, in parentheses."""
        chosen = best.options.config.model.precision
        if chosen not in speeds:
            return ""
        others = [
            f"{name}: {speed / speeds[chosen]:.2f}x"
            for name, speed in speeds.items()
            if name != chosen
        ]
        return f" ({', '.join(others)})" if others else ""


def _fastest(found: Sequence[_Candidate]) -> _Candidate:
    """Return the fastest candidate; a less precise one must be `MIN_SPEEDUP` times as fast.

    Args:
        found: the candidates, the most precise one first.
    """
    best = found[0]
    for candidate in found[1:]:
        if candidate.speed >= MIN_SPEEDUP * best.speed:
            best = candidate
    return best
