"""Cut a sequence of ids into batches: sequential partitioning and random sampling.

Both methods follow d2l 0.17, section 8.3: every epoch starts at a random offset below `num_steps`.
The offset and the order of an epoch are drawn from (seed, epoch) alone. A position in the data is
therefore the pair (epoch, index of the batch), and resuming needs nothing else. This holds for any
number of processes that share the batches. The ids can be any integer array, including a memory
map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
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
    """The rows of a text for one training step, and the parameters of the step.

    The tokens are read from the text when `tokens` is first accessed. An engine that keeps the text
    on its device reads them there instead.

    Attributes:
        text: (N,) integers, the ids of the whole text.
        starts: (B,) int64, the position in the text at which each row of the whole batch begins.
        num_steps: number of time steps T.
        reset_state: if True, the hidden state is set to zero before the batch; otherwise it is
            carried over from the previous batch.
        rows: the rows of the whole batch that this process computes.
        loss_weight: multiplies the mean loss, so that every token has the same weight.
        gradient_scale: multiplies the gradient that is passed from one time step to the previous
            one, so that randomized truncation is unbiased.
    """

    text: Ids
    starts: NDArray[np.int64]
    num_steps: int
    reset_state: bool
    rows: slice = field(default_factory=lambda: ALL_ROWS)
    loss_weight: float = 1.0
    gradient_scale: float = 1.0

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """The tokens of this process's rows, (rows, T + 1) int64."""
        starts = self.own_starts
        tokens = np.empty((len(starts), self.num_steps + 1), dtype=np.int64)
        for row, start in zip(tokens, starts, strict=True):
            row[:] = self.text[start : start + self.num_steps + 1]
        return tokens

    @property
    def ids(self) -> NDArray[np.int64]:
        """The input ids of this process's rows, (rows, T) int64."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> NDArray[np.int64]:
        """The id that follows each input id, (rows, T) int64."""
        return self.tokens[:, 1:]

    @property
    def own_starts(self) -> NDArray[np.int64]:
        """The position in the text at which each row of this process begins, (rows,) int64."""
        return self.starts[self.rows]

    @property
    def num_rows(self) -> int:
        """Number of rows B of the whole batch."""
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        """Number of targets of the whole batch."""
        return self.num_rows * self.num_steps


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
    """Yield consecutive windows of `batch_size` contiguous rows.

    The ids from `offset` on are split into rows of equal length. Window k of a row continues
    window k - 1 of the same row, so the hidden state can be carried over.

    Args:
        ids: (N,) integers.
        batch_size: number of rows B.
        lengths: number of time steps T of each window.
        offset: index of the first id to use.
        skip: number of windows to skip at the beginning.
        rows: the rows to read of each batch.
        keep_rest: whether a window that exceeds the end of the rows is truncated there. By
            default it is omitted.
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
            yield Batch(ids, starts + position, length, position == 0, rows)
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
    """Yield batches of windows of `num_steps` ids in random order, each window once.

    An incomplete last batch is omitted.

    Args:
        ids: (N,) integers.
        batch_size: number of windows B in a batch.
        num_steps: number of time steps T of each window.
        offset: index of the first id to use.
        random: determines the order.
        skip: number of batches to skip at the beginning.
        rows: the rows to read of each batch.
    """
    count = (len(ids) - offset - 1) // num_steps
    order = np.arange(count, dtype=np.uint32 if count < 2**32 else np.int64)
    random.shuffle(order)
    for first in range(skip * batch_size, count - batch_size + 1, batch_size):
        starts = offset + order[first : first + batch_size].astype(np.int64) * num_steps
        yield Batch(ids, starts, num_steps, True, rows)


class BatchStream:
    """The batches of a training run, starting at any position.

    Args:
        ids: (N,) integers, the ids of the training part.
        config: provides `batch_size`, `num_steps`, `sampling`, `bptt` and `seed`.
        processes: the processes that share each batch. Each process reads its own rows.

    Raises:
        SourceError: if the training part is shorter than one batch.
        ConfigError: if there are more processes than rows.
    """

    def __init__(
        self, ids: Ids, config: TrainingConfig, processes: Processes = SINGLE_PROCESS
    ) -> None:
        require(
            processes.count <= config.batch_size,
            f"batch_size {config.batch_size} cannot be shared by {processes.count} processes;"
            " each process needs at least one row",
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
                f"the training part has {len(ids):,} tokens, but one batch needs {needed:,}"
                f" ({config.batch_size} x {self.num_steps} and the last target);"
                " use a longer text, or a smaller --batch-size or --num-steps"
            )
        self._max_offset = min(self.num_steps - 1, len(ids) - needed)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return an iterator over the batches of an epoch, beginning with batch `start`."""
        random = np.random.default_rng([self.config.seed, epoch])
        offset = int(random.integers(0, self._max_offset + 1))
        size = self.config.batch_size
        if self.config.sampling == "random":
            return random_windows(
                self.ids, size, self.num_steps, offset, random, start, rows=self.rows
            )
        lengths = self._window_lengths(random)
        # Omitted ends would bias the random truncation: late tokens would have less weight.
        keep_rest = self.config.bptt == "randomized"
        windows = sequential_windows(
            self.ids, size, lengths, offset, start, rows=self.rows, keep_rest=keep_rest
        )
        return map(self._with_weight, windows) if keep_rest else windows

    def typical_batch(self, max_steps: int) -> Batch:
        """Return a batch of at most `max_steps` tokens per row, for timing a training step."""
        lengths = iter([min(self.num_steps, max_steps)])
        return next(
            sequential_windows(self.ids, self.config.batch_size, lengths, 0, rows=self.rows)
        )

    def epoch_length(self) -> int:
        """Return the number of batches in an epoch.

        The result assumes the mean offset and the mean window length. The actual number can differ
        by one, or by more if window lengths are random.
        """
        tokens = len(self.ids) - 1 - self._max_offset // 2
        return max(tokens // (self.config.batch_size * self.num_steps), 1)

    @property
    def recurrent_gradient_scale(self) -> float:
        """Factor that makes randomized truncation unbiased: 1 / (1 - 1 / num_steps).

        A window ends after each step with probability 1 / num_steps. With this probability the
        gradient is not passed across the step. Otherwise it is multiplied by the inverse of the
        probability that it is passed. Its mean is then the gradient of full BPTT (d2l 0.17,
        section 8.7, after Tallec and Ollivier 2017). This holds for fixed weights: updates between
        windows, clipping and Adam act on the gradient of each window.

        The factor is 1 unless `bptt` is "randomized".
        """
        if self.config.bptt != "randomized":
            return 1.0
        return 1.0 / (1.0 - 1.0 / self.num_steps)

    def _with_weight(self, batch: Batch) -> Batch:
        """Return a window of random length with the weight that counts every token equally."""
        return dataclasses.replace(
            batch,
            loss_weight=batch.num_steps / self.num_steps,
            gradient_scale=self.recurrent_gradient_scale,
        )

    def _window_lengths(self, random: np.random.Generator) -> Iterator[int]:
        while True:
            if self.config.bptt == "randomized":
                yield int(random.geometric(1.0 / self.num_steps))
            else:
                yield self.num_steps
