"""Batch-size schedule: small batches and short windows first, doubled in stages.

Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size", for the rows; short
windows first, for the steps, cost less while there is little to learn from what lies far back. The
budget is cut into stages of equal shares; from one to the next, sizes double until all are full.
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
    """Into how many equal shares the budget is cut: 1 where nothing grows."""
    return max(config.batch_growth, config.window_growth).bit_length()


def stage_at(config: TrainingConfig, spent: float) -> int:
    """The stage in which the share `spent` of the budget lies; the first is 0."""
    stages = num_stages(config)
    return min(int(spent * stages), stages - 1)


def at_stage(config: TrainingConfig, stage: int) -> TrainingConfig:
    """The settings with the sizes of this stage."""
    return dataclasses.replace(
        config,
        batch_size=config.batch_size // max(config.batch_growth >> stage, 1),
        num_steps=config.num_steps // max(config.window_growth >> stage, 1),
        batch_growth=1,
        window_growth=1,
    )


def tokens_per_step(config: TrainingConfig) -> float:
    """Of an update, on average over a budget in steps."""
    stages = [at_stage(config, stage) for stage in range(num_stages(config))]
    return statistics.fmean(stage.batch_size * stage.num_steps for stage in stages)


class GrowingStream:
    """The batches of a run from stage to stage; where in them it is stands in its `TrainState`.

    Attributes:
        now: the stream of the stage that was entered last.

    Args:
        ids: the training part.
        config: the sizes at the end, and by how much smaller they begin.
        processes: those that share each batch.

    Raises:
        SourceError, ConfigError: as `BatchStream`.
    """

    def __init__(self, ids: Ids, config: TrainingConfig, processes: Processes) -> None:
        self._ids, self._config, self._processes = ids, config, processes
        self.enter(0)

    def enter(self, stage: int) -> None:
        """Read in the sizes of this stage from here on."""
        self.now = BatchStream(self._ids, at_stage(self._config, stage), self._processes)

    def grow(self, state: TrainState, spent: float) -> bool:
        """Enter the stage that the budget has come to; False when it is the same as before."""
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
        """All batches from here on in this stage's sizes; None at the end of an epoch."""
        while True:
            yield from self.now.epoch(state.epoch, state.position)
            state.epoch += 1
            state.position = 0
            yield None
