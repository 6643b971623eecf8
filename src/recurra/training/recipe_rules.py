"""The rules of the recipe: settings that follow from the text, the speed and the hidden size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from recurra.config import ModelConfig, RunConfig, RunOptions
from recurra.config.optimizers import OPTIMIZERS
from recurra.training.recipe_table import (
    BATCH_LR_POWER,
    CLIP_NORM,
    CRITICAL_BATCH,
    DECAY_TIMES_COUNT,
    LIGHT_MODEL,
    MAX_DECAY,
    MAX_DROPOUT,
    MAX_EPOCHS,
    MAX_LR,
    MAX_ONE_HOT_VOCAB,
    MAX_WEIGHTS,
    NARROW_EMBEDDING,
    NUM_STEPS,
    RESIDUAL_LR_FACTOR,
    SMALL_BATCH,
    TOKENS_PER_WEIGHT,
    UNITS_TIMES_LR,
    WARMUP,
    WEIGHTS_PER_TOKEN,
    MachineRecipe,
)
from recurra.training.sizing import flops_per_token, hidden_size_for, num_parameters


def basics(config: RunConfig, num_ids: int) -> dict[str, Any]:
    """Return the settings that depend on neither the throughput nor the hidden size."""
    training = config.training
    num_steps = min(NUM_STEPS, max(2, num_ids // 4))
    return {
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


def batch_sizes(options: RunOptions, num_ids: int, table: MachineRecipe) -> list[int]:
    """Return the batch sizes to choose from, in ascending order; only the given one if it was set.

    Args:
        options: the settings that were given.
        num_ids: number of tokens in the training part of the text.
        table: the recipe of the machine.
    """
    training = options.config.training
    if options.is_given("batch_size"):
        return [training.batch_size]
    limit = num_ids // (4 * NUM_STEPS)
    sizes = {_multiple_of(training.batch_growth, min(n, limit)) for n in table.batch_sizes}
    return sorted(sizes)


def _multiple_of(unit: int, size: int) -> int:
    """Return the largest multiple of `unit` that is at most `size`, but at least `unit`."""
    return max(unit, size - size % unit)


def _takes_forget_bias(model: ModelConfig) -> bool:
    return model.traits.has_forget_gate and not model.chrono


def with_size(options: RunOptions, size: int) -> RunOptions:
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


def with_parameters(
    options: RunOptions, sized: Callable[[RunOptions, int], RunOptions]
) -> RunOptions:
    """Return options with the hidden size that `num_parameters` requires, if it is set.

    Args:
        options: the options.
        sized: adds the settings that are chosen for a hidden size.
    """
    if options.num_parameters is None:
        return options

    def model_of(size: int) -> ModelConfig:
        return sized(options.replaced(hidden_size=size), size).config.model

    return options.replaced(hidden_size=hidden_size_for(options.num_parameters, model_of))


def rates(
    config: RunConfig, num_ids: int, num_trained: float, table: MachineRecipe
) -> dict[str, Any]:
    """Return the learning rate, and dropout rates that increase with the number of epochs.

    Args:
        config: the configuration, with the batch size and the sizes of the model.
        num_ids: number of tokens in the training part of the text.
        num_trained: number of training tokens; a token counts once in every epoch.
        table: the recipe of the machine.
    """
    model, doublings = config.model, math.log2(1.0 + num_trained / num_ids)
    is_light = num_parameters(model) <= LIGHT_MODEL * num_ids
    max_outputs, max_weights = table.max_dropout if is_light else MAX_DROPOUT
    outputs = round(min(max_outputs, max(0.0, 0.1 * (doublings - 0.9))), 2)
    weights = round(min(max_weights, max(0.0, 0.1 * (doublings - 1.9))), 2)
    return {
        "lr": OPTIMIZERS[config.training.optimizer].default_lr or _learning_rate(config),
        "output_dropout": outputs,
        "weight_dropout": weights if model.traits.reads_state else 0.0,
        "dropout": outputs if model.num_layers > 1 or model.residual else 0.0,
    }


def _learning_rate(config: RunConfig) -> float:
    model = config.model
    share = RESIDUAL_LR_FACTOR if model.residual else model.traits.lr_factor
    share *= max(1.0, _batch_tokens(config) / SMALL_BATCH) ** BATCH_LR_POWER
    return float(f"{share * min(MAX_LR, UNITS_TIMES_LR / model.hidden_size):.2g}")


def weight_decay(config: RunConfig, num_ids: int) -> float:
    """Return the weight decay, which limits the weights of rare tokens."""
    if not OPTIMIZERS[config.training.optimizer].decouples_weight_decay:
        return 0.0  # The constants hold only for decoupled weight decay.
    decay = min(MAX_DECAY, DECAY_TIMES_COUNT * config.model.vocab_size / num_ids)
    return float(f"{decay:.1g}")


def choose_size(options: RunOptions, num_ids: int, operations: float, table: MachineRecipe) -> int:
    """Return the largest size of the table with enough tokens per weight, or the smallest one.

    Args:
        options: all settings but those that depend on the size.
        num_ids: number of tokens in the training part of the text.
        operations: floating-point operations in the available time.
        table: the sizes.
    """
    chosen = table.sizes[0]
    for size in table.sizes:
        config = with_size(options, size).config
        weights = num_parameters(config.model)
        is_enough = useful_tokens(config, num_ids, operations) >= TOKENS_PER_WEIGHT * weights
        if not is_enough or weights > max_weights(num_ids):
            break
        chosen = size
    return chosen


def max_weights(num_ids: int) -> float:
    """Return the maximum number of weights for a text."""
    return max(MAX_WEIGHTS, WEIGHTS_PER_TOKEN * num_ids)


def num_tokens(config: RunConfig, num_ids: int, operations: float) -> float:
    """Return the number of training tokens; a token counts once in every epoch."""
    max_epochs = config.training.max_epochs
    tokens = operations / flops_per_token(config.model)
    return tokens if max_epochs is None else min(tokens, max_epochs * num_ids)


def num_updates(config: RunConfig, num_ids: int, operations: float) -> float:
    """Return the number of updates; with full BPTT, as if it were truncated."""
    return num_tokens(config, num_ids, operations) / _batch_tokens(config)


def useful_tokens(config: RunConfig, num_ids: int, operations: float) -> float:
    """Return the number of tokens in batches of `SMALL_BATCH` tokens that train equally well."""
    return num_tokens(config, num_ids, operations) * usefulness(config)


def usefulness(config: RunConfig) -> float:
    """Return the value of a token in batches of this size, relative to the batch of a CPU.

    Two numbers of tokens in batches of different sizes give about the same loss if their products
    with this value are equal. With batches of b tokens, it is proportional to
    1 / (1 + b / `CRITICAL_BATCH`), and at most 1 (McCandlish et al. 2018, "An Empirical Model of
    Large-Batch Training").
    """
    tokens = _batch_tokens(config)
    return min(1.0, (1.0 + SMALL_BATCH / CRITICAL_BATCH) / (1.0 + tokens / CRITICAL_BATCH))


def _batch_tokens(config: RunConfig) -> int:
    """Return the number of tokens in a batch; with full BPTT, that of the smallest batch."""
    training = config.training
    return SMALL_BATCH if training.bptt == "full" else training.batch_size * training.num_steps
