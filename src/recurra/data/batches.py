"""Cut a sequence of ids into batches: sequential partitioning and random sampling.

Both follow d2l section 8.3: every epoch starts at a fresh random offset below `num_steps`. Here
the offset and the order of an epoch are drawn from (seed, epoch) alone, so a position in the data
is just the pair (epoch, index of the batch) and resuming needs nothing else, whatever the number of
processes that share the batches. Works on any integer array, memory-mapped ones of any size
included; knows no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.config import TrainingConfig
from recurra.config.checks import require
from recurra.errors import SourceError
from recurra.runtime.distributed import SINGLE_PROCESS, Processes

Ids = NDArray[Any]
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Batch:
    """One batch, and everything that a training step must know of it.

    Attributes:
        ids, targets: (rows, T) int64, this process's rows; the targets are one token later.
        reset_state: whether the state before the batch is zero: nothing is carried into it.
        starts: (B,), where each row of the whole batch begins in the text.
        rows: which rows of the whole batch are here.
        loss_weight: multiplies the mean loss, so that every token weighs the same.
        gradient_scale: multiplies every gradient that passes from one step to the step before;
            randomised truncation stays unbiased by it.
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    reset_state: bool
    starts: NDArray[np.int64]
    rows: slice = field(default_factory=lambda: ALL_ROWS)
    loss_weight: float = 1.0
    gradient_scale: float = 1.0

    @property
    def num_rows(self) -> int:
        """Rows of the whole batch."""
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        """Targets of the whole batch."""
        steps: int = self.targets.shape[1]
        return self.num_rows * steps


def sequential_windows(
    ids: Ids,
    batch_size: int,
    lengths: Iterator[int],
    offset: int,
    skip: int = 0,
    *,
    rows: slice = ALL_ROWS,
    keep_rest: bool = False,
) -> Iterator[Batch]:
    """B contiguous streams read side by side, one window after the other.

    The text from `offset` on is cut into `batch_size` equal rows. Window k of row b continues
    window k - 1 of row b, so the state can be carried; `lengths` gives each window's T. A window
    that would pass the rows' end is left out, or with `keep_rest` cut there. The first `skip`
    windows are passed over; of each batch only `rows` are read.
    """
    row = (len(ids) - offset - 1) // batch_size
    starts = offset + row * np.arange(batch_size)
    position = 0
    for index, length in enumerate(lengths):
        if keep_rest:
            length = min(length, row - position)
        if length == 0 or position + length > row:
            return
        if index >= skip:
            yield _cut(ids, starts + position, length, rows, reset_state=position == 0)
        position += length


def random_windows(
    ids: Ids,
    batch_size: int,
    num_steps: int,
    offset: int,
    random: np.random.Generator,
    skip: int = 0,
    *,
    rows: slice = ALL_ROWS,
) -> Iterator[Batch]:
    """Windows of `num_steps` in random order, each used once.

    An incomplete last batch is left out; the first `skip` batches are passed over; of each batch
    only `rows` are read.
    """
    count = (len(ids) - offset - 1) // num_steps
    order = np.arange(count, dtype=np.uint32 if count < 2**32 else np.int64)
    random.shuffle(order)
    for first in range(skip * batch_size, count - batch_size + 1, batch_size):
        starts = offset + order[first : first + batch_size].astype(np.int64) * num_steps
        yield _cut(ids, starts, num_steps, rows, reset_state=True)


def _cut(
    ids: Ids, starts: NDArray[np.int64], length: int, rows: slice, *, reset_state: bool
) -> Batch:
    own = starts[rows]
    tokens = np.empty((len(own), length + 1), dtype=np.int64)
    for row, start in zip(tokens, own, strict=True):
        row[:] = ids[start : start + length + 1]
    return Batch(tokens[:, :-1], tokens[:, 1:], reset_state, starts, rows)


class BatchStream:
    """The batches of a training run, epoch after epoch, from any position.

    Args:
        ids: the training part, one-dimensional.
        config: batch size, window, sampling, kind of BPTT and seed.
        processes: those that share each batch; every one reads its own rows of it.

    Raises:
        SourceError: the text does not fill one batch.
        ConfigError: there are more processes than rows.
    """

    def __init__(
        self, ids: Ids, config: TrainingConfig, processes: Processes = SINGLE_PROCESS
    ) -> None:
        require(
            processes.count <= config.batch_size,
            f"batch_size {config.batch_size} cannot be shared by {processes.count} processes",
        )
        self.ids = ids
        self.rows = processes.share(config.batch_size)
        self.config = config
        self.num_steps = config.num_steps
        if config.bptt == "full":
            self.num_steps = max((len(ids) - 1) // config.batch_size, 1)
        needed = config.batch_size * self.num_steps + 1
        if len(ids) < needed:
            raise SourceError(
                f"the training part has {len(ids):,} tokens, and one batch needs {needed:,}"
                f" ({config.batch_size} x {self.num_steps} and the one that follows);"
                " take a longer text, or a smaller --batch-size or --num-steps"
            )
        self._max_offset = min(self.num_steps - 1, len(ids) - needed)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from its batch number `start` on."""
        random = np.random.default_rng([self.config.seed, epoch])
        offset = int(random.integers(0, self._max_offset + 1))
        size = self.config.batch_size
        if self.config.sampling == "random":
            return random_windows(
                self.ids, size, self.num_steps, offset, random, start, rows=self.rows
            )
        lengths = self._window_lengths(random)
        # Left-out ends would bias the random truncation: late tokens would weigh less.
        keep_rest = self.config.bptt == "randomized"
        windows = sequential_windows(
            self.ids, size, lengths, offset, start, rows=self.rows, keep_rest=keep_rest
        )
        return map(self._weighted, windows) if keep_rest else windows

    def typical_batch(self, max_steps: int) -> Batch:
        """A batch of `num_steps` tokens a row, but at most `max_steps`, to time a step on."""
        lengths = iter([min(self.num_steps, max_steps)])
        return next(
            sequential_windows(self.ids, self.config.batch_size, lengths, 0, rows=self.rows)
        )

    def epoch_length(self) -> int:
        """Batches in an epoch: exact but for the offset, which may cost one; the mean length
        counts where the windows' lengths are random."""
        tokens = len(self.ids) - 1 - self._max_offset // 2
        return max(tokens // (self.config.batch_size * self.num_steps), 1)

    @property
    def recurrent_gradient_scale(self) -> float:
        """What keeps randomised truncation unbiased: 1 / (chance that a step is not cut).

        A window ends after each step with probability 1 / num_steps. A gradient that would pass
        that step is lost with this probability, and otherwise multiplied by the inverse of its
        chance to pass, so that its mean is what full BPTT gives: d2l section 8.7, after Tallec and
        Ollivier 2017. That holds for the gradient at fixed weights; updates between the windows,
        clipping and Adam act on each window's gradient as they do on any other.
        """
        if self.config.bptt != "randomized":
            return 1.0
        return 1.0 / (1.0 - 1.0 / self.num_steps)

    def _weighted(self, batch: Batch) -> Batch:
        """Return a window of random length with the weight that makes every token count alike."""
        return dataclasses.replace(
            batch,
            loss_weight=batch.ids.shape[1] / self.num_steps,
            gradient_scale=self.recurrent_gradient_scale,
        )

    def _window_lengths(self, random: np.random.Generator) -> Iterator[int]:
        while True:
            if self.config.bptt == "randomized":
                yield int(random.geometric(1.0 / self.num_steps))
            else:
                yield self.num_steps
