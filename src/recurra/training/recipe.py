"""Choose unspecified settings from the text, the time budget and the measured throughput.

The size of the model determines how many tokens can be processed in the time budget. The number of
epochs determines how much regularization is needed. All constants are based on measurements; see
docs/results/quality.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recurra.config import ModelConfig, RunConfig, RunOptions
from recurra.config.optimizers import OPTIMIZERS
from recurra.kernels import library
from recurra.kernels.matmul_selection import bf16_speedup
from recurra.recurrence.backends import Requirements, find_backend
from recurra.recurrence.cells import find_cell
from recurra.report.progress import format_count
from recurra.training.budget import Budget
from recurra.training.context import RunContext
from recurra.training.estimate import flops_per_token
from recurra.training.sizing import hidden_size_for, num_parameters

SIZES = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Hidden sizes to choose from."""
TOKENS_PER_WEIGHT = 5.0
"""Minimum number of training tokens per weight; a token counts once in every epoch."""
MAX_WEIGHTS, WEIGHTS_PER_TOKEN = 3e6, 3.0
"""The maximum number of weights is `MAX_WEIGHTS`, or `WEIGHTS_PER_TOKEN` times the length of the
text if that is larger. Larger models were not measured."""
MAX_EPOCHS = 100.0
"""Maximum number of epochs; further epochs overfit."""
MAX_ONE_HOT_VOCAB = 256
"""Maximum vocabulary size for which the first layer reads tokens without an embedding."""
NARROW_EMBEDDING = 64
"""Embedding size with a small vocabulary, for cells that need an embedding."""
BATCH_SIZE, NUM_STEPS = 16, 64
UNITS_TIMES_LR, MAX_LR = 384 * 1.2e-2, 1.6e-2
"""The learning rate is `UNITS_TIMES_LR` divided by the hidden size, and at most `MAX_LR`."""
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
MIN_BF16_SPEEDUP = 1.05
"""Speed of a layer in bf16 relative to fp32 from which bf16 is chosen; above 1 because of the noise
of the measurement."""
_FIRST_SIZE = 256

Trial = Callable[[RunConfig], float]
"""Returns the floating-point operations of matrix products in a second of training."""


@dataclass(frozen=True)
class Recipe:
    """A complete configuration, with three lines that explain the choice."""

    config: RunConfig
    reasons: list[str]


def resolve(options: RunOptions, num_ids: int, trial: Trial, context: RunContext) -> RunConfig:
    """Return the complete configuration of a run.

    With a time budget, settings that were not given are chosen by `choose`; without one, they have
    their defaults.

    Args:
        options: the settings that were given, and the vocabulary size.
        num_ids: number of tokens in the training part of the text.
        trial: measures the speed of training, such as `SpeedTrial`.
        context: the context of the run; its `progress` receives the reasons.

    Raises:
        SourceError: the text does not fill one batch.
    """
    minutes = Budget(options.config.training, 1, context.clock).minutes
    if options.is_complete:
        return options.config
    if minutes is None:
        return _with_parameters(options, _unchanged).config
    seconds = max(minutes * 60 * TRAINING_TIME_FRACTION - context.clock.seconds(), 1.0)
    recipe = choose(options, num_ids, context.processes.device, trial, seconds)
    context.progress.plan(recipe.reasons)
    return recipe.config


def choose(
    options: RunOptions, num_ids: int, device: torch.device, trial: Trial, seconds: float
) -> Recipe:
    """Choose the hyperparameters that were not given; other settings keep their defaults.

    Args:
        options: the settings that were given, and the vocabulary size.
        num_ids: number of tokens in the training part of the text.
        device: the device that trains.
        trial: measures the speed of training.
        seconds: available time for training steps.

    Raises:
        SourceError: the text does not fill one batch.
    """
    basics = options.filled(**_basics(options.config, num_ids))
    if options.num_parameters is not None:
        basics = _with_parameters(basics, _with_size)
    sized = _with_precision(_with_size(basics, _FIRST_SIZE), device)
    # The throughput depends on the size, so it is measured again with the first choice.
    for _ in range(2):
        speed = trial(sized.config)
        size = _choose_size(basics, num_ids, speed * seconds)
        sized = _with_precision(_with_size(basics, size), device)
    tokens = _num_tokens(sized.config, num_ids, speed * seconds)
    rated = sized.filled(**_rates(sized.config, tokens / num_ids))
    config = rated.filled(weight_decay=_weight_decay(rated.config, num_ids)).config
    needed = tokens * flops_per_token(config.model) / speed
    reasons = _reasons(config, tokens, num_ids, needed, seconds)
    if not basics.is_given("precision"):
        reasons[1] += _precision_reason(config, device)
    return Recipe(config, reasons)


def _basics(config: RunConfig, num_ids: int) -> dict[str, Any]:
    """Return the settings that depend on neither the throughput nor the hidden size."""
    training = config.training
    batch_size = min(BATCH_SIZE, num_ids // (4 * NUM_STEPS))
    num_steps = min(NUM_STEPS, max(2, num_ids // 4))
    return {
        "batch_size": _multiple_of(training.batch_growth, batch_size),
        "num_steps": _multiple_of(training.window_growth, num_steps),
        "init": "orthogonal",
        "forget_bias": 1.0 if _takes_forget_bias(config.model) else 0.0,
        "locked_dropout": True,
        "schedule": "linear",
        "warmup": WARMUP,
        "final_lr": 0.0,
        "clip_norm": OPTIMIZERS[training.optimizer].default_clip_norm or CLIP_NORM,
        # With full BPTT an epoch is a single step.
        "max_epochs": None if training.bptt == "full" else MAX_EPOCHS,
    }


def _multiple_of(unit: int, size: int) -> int:
    """Return the largest multiple of `unit` that is at most `size`, but at least `unit`."""
    return max(unit, size - size % unit)


def _takes_forget_bias(model: ModelConfig) -> bool:
    return model.traits.has_forget_gate and not model.chrono


def _with_size(options: RunOptions, size: int) -> RunOptions:
    """Return options with this hidden size and an embedding of matching size."""
    model = options.config.model
    is_bound = options.is_given("embedding_size") and (model.tie_weights or model.residual)
    if options.is_given("hidden_size") or is_bound:
        size = model.hidden_size
    ties = model.vocab_size > MAX_ONE_HOT_VOCAB and not options.is_given("embedding_size")
    if options.is_given("tie_weights"):
        ties = model.tie_weights
    narrow = NARROW_EMBEDDING if model.traits.changes_inputs else 0
    return options.filled(
        hidden_size=size,
        embedding_size=size if ties or model.residual else narrow,
        tie_weights=ties,
    )


def _with_parameters(
    options: RunOptions, with_size: Callable[[RunOptions, int], RunOptions]
) -> RunOptions:
    """Return options with the hidden size that `num_parameters` requires, if it is set.

    Args:
        options: the options.
        with_size: adds the settings that are chosen for a hidden size.
    """
    if options.num_parameters is None:
        return options

    def model_of(size: int) -> ModelConfig:
        return with_size(options.replaced(hidden_size=size), size).config.model

    return options.replaced(hidden_size=hidden_size_for(options.num_parameters, model_of))


def _unchanged(options: RunOptions, size: int) -> RunOptions:
    return options


def _rates(config: RunConfig, epochs: float) -> dict[str, Any]:
    """Return the learning rate, and dropout rates that increase with the number of epochs."""
    model, doublings = config.model, math.log2(1.0 + epochs)
    outputs = round(min(0.6, max(0.0, 0.1 * (doublings - 0.9))), 2)
    weights = round(min(0.5, max(0.0, 0.1 * (doublings - 1.9))), 2)
    return {
        "lr": OPTIMIZERS[config.training.optimizer].default_lr or _learning_rate(model),
        "output_dropout": outputs,
        "weight_dropout": weights if model.traits.reads_state else 0.0,
        "dropout": outputs if model.num_layers > 1 or model.residual else 0.0,
    }


def _learning_rate(model: ModelConfig) -> float:
    share = RESIDUAL_LR_FACTOR if model.residual else model.traits.lr_factor
    return float(f"{share * min(MAX_LR, UNITS_TIMES_LR / model.hidden_size):.2g}")


def _weight_decay(config: RunConfig, num_ids: int) -> float:
    """Return the weight decay, which limits the weights of rare tokens."""
    if not OPTIMIZERS[config.training.optimizer].decouples_weight_decay:
        return 0.0  # The constants hold only for decoupled weight decay.
    decay = min(MAX_DECAY, DECAY_TIMES_COUNT * config.model.vocab_size / num_ids)
    return float(f"{decay:.1g}")


def _choose_size(options: RunOptions, num_ids: int, operations: float) -> int:
    """Return the largest of `SIZES` with enough tokens per weight, or the smallest one."""
    chosen, max_weights = SIZES[0], max(MAX_WEIGHTS, WEIGHTS_PER_TOKEN * num_ids)
    for size in SIZES:
        config = _with_size(options, size).config
        weights = num_parameters(config.model)
        is_enough = _num_tokens(config, num_ids, operations) >= TOKENS_PER_WEIGHT * weights
        if not is_enough or weights > max_weights:
            break
        chosen = size
    return chosen


def _num_tokens(config: RunConfig, num_ids: int, operations: float) -> float:
    """Return the number of training tokens; a token counts once in every epoch."""
    max_epochs = config.training.max_epochs
    tokens = operations / flops_per_token(config.model)
    return tokens if max_epochs is None else min(tokens, max_epochs * num_ids)


def _reasons(
    config: RunConfig, tokens: float, num_ids: int, needed: float, seconds: float
) -> list[str]:
    model, training = config.model, config.training
    max_epochs = training.max_epochs
    window = "the whole text" if training.bptt == "full" else training.num_steps
    is_limited = max_epochs and needed < 0.9 * seconds
    limit = f" (limited to {max_epochs:g} epochs)" if is_limited else ""
    return [
        f"size      {model.hidden_size} units: about {format_count(tokens)} tokens in"
        f" {needed:,.0f} s of training, {format_count(num_ids)} tokens in the text{limit}",
        f"optimizer batch size {training.batch_size} x {window}, learning rate"
        f" {training.lr:g}, weight decay {training.weight_decay:g}, precision {model.precision}",
        f"dropout   {model.output_dropout:g} for outputs, {model.weight_dropout:g} for"
        f" recurrent weights: training takes about {tokens / num_ids:.3g} epochs",
    ]


def _with_precision(options: RunOptions, device: torch.device) -> RunOptions:
    """Return options with the precision that was measured to be the faster one at this size."""
    speedup = None if options.is_given("precision") else _bf16_speedup(options.config, device)
    is_faster = speedup is not None and speedup >= MIN_BF16_SPEEDUP
    return options.filled(precision="bf16" if is_faster else "fp32")


def _precision_reason(config: RunConfig, device: torch.device) -> str:
    """Return the measured speed of bf16 relative to fp32 at this size, in parentheses."""
    if (speedup := _bf16_speedup(config, device)) is None:
        return ""
    is_faster = speedup >= MIN_BF16_SPEEDUP
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
