"""Batch-size schedule: small batches and short windows first, doubled in stages.

The budget is divided into stages of equal length. From each stage to the next, the number of rows
and of time steps double until they reach their full size. Increasing the number of rows follows
Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size". Short windows cost less
and are sufficient early in training, when the model learns only short dependencies.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

from recurra.config import TrainingConfig
from recurra.data.batches import Batch, BatchStream, Ids
from recurra.runs.train_state import TrainState
from recurra.runtime.distributed import Processes


def num_stages(config: TrainingConfig) -> int:
    """Return the number of stages; 1 if batch size and window length are constant."""
    return max(config.batch_growth, config.window_growth).bit_length()


def stage_at(config: TrainingConfig, spent: float) -> int:
    """Return the stage, from 0, when the fraction `spent` of the budget is spent."""
    stages = num_stages(config)
    return min(int(spent * stages), stages - 1)


def at_stage(config: TrainingConfig, stage: int) -> TrainingConfig:
    """Return the configuration with the batch size and the window length of this stage."""
    return dataclasses.replace(
        config,
        batch_size=config.batch_size // max(config.batch_growth >> stage, 1),
        num_steps=config.num_steps // max(config.window_growth >> stage, 1),
        batch_growth=1,
        window_growth=1,
    )


def tokens_per_step(config: TrainingConfig) -> float:
    """Return the mean number of tokens per step over a budget in steps."""
    stages = [at_stage(config, stage) for stage in range(num_stages(config))]
    return statistics.fmean(stage.batch_size * stage.num_steps for stage in stages)


class GrowingStream:
    """The batches of a run in all stages; the position in them is part of `TrainState`.

    Attributes:
        now: the batches of the current stage.

    Args:
        ids: the training part of the text, (N,).
        config: the full sizes, and the growth factors of batch size and window length.
        processes: the processes that share each batch.

    Raises:
        SourceError, ConfigError: as in `BatchStream`.
    """

    def __init__(self, ids: Ids, config: TrainingConfig, processes: Processes) -> None:
        self._ids, self._config, self._processes = ids, config, processes
        self.enter(0)

    def enter(self, stage: int) -> None:
        """Continue with the batch size and the window length of this stage."""
        self.now = BatchStream(self._ids, at_stage(self._config, stage), self._processes)

    def grow(self, state: TrainState, spent: float) -> bool:
        """Enter the stage of the current progress if it is a later one; return whether it is.

        An unfinished epoch is ended.

        Args:
            state: the position, which is updated.
            spent: fraction of the budget that is spent.
        """
        stage = stage_at(self._config, spent)
        if stage <= state.stage:
            return False
        state.stage = stage
        if state.position > 0:
            state.skipped += 1.0 - min(state.position / self.now.epoch_length(), 1.0)
            state.epoch, state.position = state.epoch + 1, 0
        self.enter(stage)
        return True

    def batches(self, state: TrainState) -> Iterator[Batch | None]:
        """Yield the batches of this stage from the position in `state`, and None after each epoch.

        The iterator is infinite. Before it yields None, it advances `state` to the next epoch.
        """
        while True:
            yield from self.now.epoch(state.epoch, state.position)
            state.epoch += 1
            state.position = 0
            yield None
