"""The constants of the recipe: its choices on each kind of machine, and the values in its rules.

All constants were measured on CPUs, see docs/results/quality.md, also those that only the recipe
for a GPU uses. The recipe for a GPU has not been measured on one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MachineRecipe:
    """The values among which the recipe chooses on one kind of machine.

    Attributes:
        sizes: hidden sizes, in ascending order.
        batch_sizes: batch sizes, in ascending order.
        precisions: precisions to measure by whole steps, the most precise first; () if the
            measurement of the compiled kernels decides.
        first_size, first_batch_size: hidden size and batch size of the first measurement.
        max_dropout: maximum dropout of the outputs and of the recurrent weights in a model with
            at most `LIGHT_MODEL` weights per token of the text.
    """

    sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    precisions: tuple[str, ...]
    first_size: int
    first_batch_size: int
    max_dropout: tuple[float, float]


MAX_DROPOUT = 0.6, 0.5
"""Maximum dropout of the outputs and of the recurrent weights."""
LIGHT_MODEL = 3.5
"""Weights per token of the text up to which `MachineRecipe.max_dropout` holds. Larger models need
more dropout where they read a text many times."""
_CPU_SIZES = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)

CPU_RECIPE = MachineRecipe(
    sizes=_CPU_SIZES,
    # Larger batches are at most 7 % faster, and have half the updates.
    batch_sizes=(16,),
    precisions=(),
    first_size=256,
    first_batch_size=16,
    max_dropout=MAX_DROPOUT,
)
"""The recipe for a CPU."""

GPU_RECIPE = MachineRecipe(
    sizes=(*_CPU_SIZES, 1280, 1536, 2048),
    # The first one is that of a CPU, so that the recipe of a CPU is among the candidates.
    batch_sizes=(16, 32, 64, 128, 256, 512),
    precisions=("fp32", "tf32", "bf16", "fp16"),
    # At these sizes, the number of rows begins to matter for the duration of a step on an H200.
    first_size=512,
    first_batch_size=64,
    # A fast GPU reads a short text a hundred times with a model of this size. More dropout
    # increased the loss by 0.015 after as many epochs of 100,000 characters.
    max_dropout=(0.45, 0.35),
)
"""The recipe for a GPU, on which a step of a few rows takes as long as one of many rows."""

MAX_TRIAL_SHARE = 0.1
"""Maximum fraction of a time budget for the measurements on a GPU. The two on a CPU take half a
second."""
TOKENS_PER_WEIGHT = 4.65
"""Minimum number of useful training tokens per weight; a token counts once in every epoch. The best
models had 5, at the speed of the gradients alone; with the update, a step takes 7 % longer."""
MAX_WEIGHTS, WEIGHTS_PER_TOKEN = 3e6, 3.0
"""The maximum number of weights is `MAX_WEIGHTS`, or `WEIGHTS_PER_TOKEN` times the length of the
text if that is larger. Larger models were not measured."""
MAX_EPOCHS = 100.0
"""Maximum number of epochs; further epochs overfit."""
MAX_ONE_HOT_VOCAB = 256
"""Maximum vocabulary size for which the first layer reads tokens without an embedding."""
NARROW_EMBEDDING = 64
"""Embedding size with a small vocabulary, for cells that need an embedding."""
NUM_STEPS = 64
"""Number of tokens in a window."""
SMALL_BATCH, CRITICAL_BATCH = 16 * 64, 4096
"""Number of tokens in the batch of a CPU, and the critical batch size in tokens: in such a batch, a
token reduces the loss half as much as in a very small batch (McCandlish et al. 2018, "An Empirical
Model of Large-Batch Training")."""
MIN_UPDATES = 1000
"""With fewer updates than this, the number of useful tokens is reduced in proportion when batch
sizes are compared."""
UNITS_TIMES_LR, MAX_LR = 384 * 1.2e-2, 1.6e-2
"""The learning rate is `UNITS_TIMES_LR` divided by the hidden size, and at most `MAX_LR`."""
BATCH_LR_POWER = 0.5
"""The learning rate increases with this power of the tokens in a batch."""
DECAY_TIMES_COUNT, MAX_DECAY = 12.0, 0.5
"""The weight decay is `DECAY_TIMES_COUNT` divided by the mean number of occurrences of a token, and
at most `MAX_DECAY`."""
RESIDUAL_LR_FACTOR = 1 / 4
"""Learning rate with residual blocks, relative to the LSTM; for the cells, see
`CellTraits.lr_factor`."""
WARMUP, CLIP_NORM = 0.1, 0.25
"""Warm-up is long and the clipping threshold low because the learning rates are high: training
does not recover from early divergence."""
TRAINING_TIME_FRACTION = 0.93
"""Fraction of a time budget for training steps; evaluation and checkpoints take the rest."""
MIN_SPEEDUP = 1.05
"""Minimum speed of a precision relative to a more precise one for which it is chosen; greater than
1 because measurements are noisy."""


def recipe_for(device: torch.device) -> MachineRecipe:
    """Return the recipe for a device."""
    return CPU_RECIPE if device.type == "cpu" else GPU_RECIPE
