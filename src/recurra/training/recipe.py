"""Choose unspecified settings from the text, the time budget and the measured throughput.

A budget in minutes buys a number of tokens that depends on the size of the model, and how often the
text is read decides how much regularization is needed. Every number here was
chosen by measurement: docs/results/quality.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch

from recurra.config import ModelConfig, RunConfig, TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.data.batches import BatchStream, Ids
from recurra.kernels import library
from recurra.model.recurrent_lm import RecurrentLM, parameter_shapes
from recurra.recurrence.backends import Requirements, find_backend
from recurra.recurrence.cells import find_cell
from recurra.report.progress import format_count
from recurra.runtime.distributed import Processes
from recurra.training.estimate import seconds_per_step

SIZES = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Units to choose among."""
TOKENS_PER_WEIGHT = 5.0
"""A model is as large as leaves it this many tokens to learn from, repetitions included."""
MOST_WEIGHTS, WEIGHTS_PER_TOKEN = 3e6, 3.0
"""And no larger than this, or than so many weights for each token of a longer text: beyond, nothing
was measured."""
MOST_TIMES_READ = 100.0
"""Maximum number of epochs; further epochs overfit."""
LARGEST_ONE_HOT = 256
"""Vocabulary up to which the first layer reads tokens without an embedding."""
NARROW_EMBEDDING = 64
"""Width of an embedding where the cell cannot do without one."""
BATCH_SIZE, NUM_STEPS = 16, 64
UNITS_TIMES_LR, HIGHEST_LR = 384 * 1.2e-2, 1.6e-2
"""The learning rate is one over the size, up to the highest."""
DECAY_TIMES_SEEN, HIGHEST_DECAY = 12.0, 0.5
"""The weight decay is one over how often a symbol was seen on average, up to the highest."""
RESIDUAL_LR_FACTOR = 1 / 4
"""Learning rate of residual blocks relative to that of the LSTM; `CellTraits` has that of cells."""
WARMUP, CLIP_NORM = 0.1, 0.25
"""Warm-up is long and the clipping threshold low because the learning rates are high: training
does not recover from early divergence."""
_TRIED_SIZE = 256


@dataclass(frozen=True)
class Recipe:
    """Settings for a run, and why, in three lines."""

    config: RunConfig
    reasons: list[str]


def complete(
    config: RunConfig, given: Set[str], ids: Ids, processes: Processes, seconds: float
) -> Recipe:
    """Choose what was not given.

    Args:
        config: with the vocabulary's size.
        given: names of the settings that the user chose, which stay unchanged.
        ids: the training part.
        processes: those that will share each batch.
        seconds: for learning.

    Raises:
        SourceError: the text does not fill one batch.
    """
    chosen = _with_size(_with_basics(config, given, len(ids), processes.device), given, _TRIED_SIZE)
    for _ in range(2):  # larger products have another speed: the second trial is of the first size
        speed = _measure_speed(chosen, ids, processes)
        chosen = _with_size(chosen, given, _choose_size(chosen, given, len(ids), speed * seconds))
    tokens = _num_tokens(chosen, len(ids), speed * seconds)
    chosen = _with_rates(chosen, given, tokens / len(ids))
    chosen = _replace(chosen, given, weight_decay=_weight_decay(chosen, len(ids)))
    needed = tokens * _flops_per_token(chosen.model) / speed
    return Recipe(chosen, _reasons(chosen, tokens, len(ids), needed, seconds))


def _replace(config: RunConfig, given: Set[str], **settings: Any) -> RunConfig:
    """The configuration with these settings, but for those that were given."""
    free = {name: value for name, value in settings.items() if name not in given}

    def own(section: ModelConfig | TrainingConfig) -> dict[str, Any]:
        return {f.name: free[f.name] for f in dataclasses.fields(section) if f.name in free}

    model = dataclasses.replace(config.model, **own(config.model))
    training = dataclasses.replace(config.training, **own(config.training))
    return dataclasses.replace(config, model=model, training=training)


def _with_basics(
    config: RunConfig, given: Set[str], num_ids: int, device: torch.device
) -> RunConfig:
    """What depends on neither speed nor size."""
    training = config.training
    batch_size = min(BATCH_SIZE, num_ids // (4 * NUM_STEPS))
    num_steps = min(NUM_STEPS, max(2, num_ids // 4))
    return _replace(
        config,
        given,
        batch_size=_multiple_of(training.batch_growth, batch_size),
        num_steps=_multiple_of(training.window_growth, num_steps),
        precision="bf16" if _has_fast_bf16(config.model, device) else "fp32",
        init="orthogonal",
        forget_bias=1.0 if _takes_forget_bias(config.model) else 0.0,
        locked_dropout=True,
        schedule="linear",
        warmup=WARMUP,
        final_lr=0.0,
        clip_norm=OPTIMIZERS[training.optimizer].default_clip_norm or CLIP_NORM,
        # An epoch of full BPTT is one update.
        max_epochs=None if training.bptt == "full" else MOST_TIMES_READ,
    )


def _multiple_of(unit: int, size: int) -> int:
    """The nearest below, or the unit itself."""
    return max(unit, size - size % unit)


def _takes_forget_bias(model: ModelConfig) -> bool:
    return model.traits.has_forget_gate and not model.chrono


def _with_size(config: RunConfig, given: Set[str], size: int) -> RunConfig:
    model = config.model
    is_bound = "embedding_size" in given and (model.tie_weights or model.residual)
    if "hidden_size" in given or is_bound:
        size = model.hidden_size
    ties = model.vocab_size > LARGEST_ONE_HOT and "embedding_size" not in given
    if "tie_weights" in given:
        ties = model.tie_weights
    narrow = NARROW_EMBEDDING if model.traits.changes_inputs else 0
    return _replace(
        config,
        given,
        hidden_size=size,
        embedding_size=size if ties or model.residual else narrow,
        tie_weights=ties,
    )


def _with_rates(config: RunConfig, given: Set[str], times_read: float) -> RunConfig:
    """Learning rate, and dropout by how often every token will be read."""
    model, doublings = config.model, math.log2(1.0 + times_read)
    outputs = round(min(0.6, max(0.0, 0.1 * (doublings - 0.9))), 2)
    weights = round(min(0.5, max(0.0, 0.1 * (doublings - 1.9))), 2)
    return _replace(
        config,
        given,
        lr=OPTIMIZERS[config.training.optimizer].default_lr or _learning_rate(model),
        output_dropout=outputs,
        weight_dropout=weights if model.traits.reads_state else 0.0,
        dropout=outputs if model.num_layers > 1 or model.residual else 0.0,
    )


def _learning_rate(model: ModelConfig) -> float:
    share = RESIDUAL_LR_FACTOR if model.residual else model.traits.lr_factor
    return float(f"{share * min(HIGHEST_LR, UNITS_TIMES_LR / model.hidden_size):.2g}")


def _weight_decay(config: RunConfig, num_ids: int) -> float:
    """Against symbols so rare that what the model makes of them is chance."""
    if not OPTIMIZERS[config.training.optimizer].decouples_weight_decay:
        return 0.0  # Through the gradient it would act differently.
    decay = min(HIGHEST_DECAY, DECAY_TIMES_SEEN * config.model.vocab_size / num_ids)
    return float(f"{decay:.1g}")


def _measure_speed(config: RunConfig, ids: Ids, processes: Processes) -> float:
    """Operations of products in a second of training on this machine, by a short trial.

    With several processes, the first one times its own share of a batch.
    """
    with torch.random.fork_rng(devices=[]):
        model = RecurrentLM(config.model).to(processes.device)
    stream = BatchStream(ids, config.training, processes)
    per_step = config.training.batch_size * stream.num_steps * _flops_per_token(config.model)
    return per_step / seconds_per_step(model, stream, processes)


def _choose_size(config: RunConfig, given: Set[str], num_ids: int, operations: float) -> int:
    """The largest that is left enough to learn from."""
    chosen, most = SIZES[0], max(MOST_WEIGHTS, WEIGHTS_PER_TOKEN * num_ids)
    for size in SIZES:
        sized = _with_size(config, given, size)
        weights = sum(math.prod(shape) for shape in parameter_shapes(sized.model).values())
        enough = _num_tokens(sized, num_ids, operations) >= TOKENS_PER_WEIGHT * weights
        if not enough or weights > most:
            break
        chosen = size
    return chosen


def _num_tokens(config: RunConfig, num_ids: int, operations: float) -> float:
    """That the model will learn from, repetitions included."""
    most = config.training.max_epochs
    tokens = operations / _flops_per_token(config.model)
    return tokens if most is None else min(tokens, most * num_ids)


def _reasons(
    config: RunConfig, tokens: float, num_ids: int, needed: float, seconds: float
) -> list[str]:
    model, training = config.model, config.training
    most = training.max_epochs
    window = "the whole text" if training.bptt == "full" else training.num_steps
    is_enough = f" (limited to {most:g} epochs)" if most and needed < 0.9 * seconds else ""
    return [
        f"size      {model.hidden_size} units: {needed:,.0f} s of learning are about"
        f" {format_count(tokens)} tokens with it, and the text has {format_count(num_ids)}"
        f"{is_enough}",
        f"speed     batches of {training.batch_size} x {window}, learning rate"
        f" {training.lr:g}, weight decay {training.weight_decay:g}, products in {model.precision}",
        f"dropout   {model.output_dropout:g} of the outputs, {model.weight_dropout:g} of the"
        f" recurrent weights: each token will be read about {tokens / num_ids:.3g} times",
    ]


def _has_fast_bf16(model: ModelConfig, device: torch.device) -> bool:
    needs = Requirements(find_cell(model.cell), device, has_zoneout=model.zoneout > 0.0)
    is_supported = needs.cell.reads_state and find_backend("native").unsupported(needs) is None
    if not is_supported or model.residual or not library.is_available():
        return False
    kind: int = library.load().recurra_best_kind()
    return kind > 1


def _flops_per_token(model: ModelConfig) -> float:
    """Of a training step's products; a lookup has none."""
    shapes = parameter_shapes(model)
    looked_up = "embedding" if model.embedding_size else "weight_ih_l0"
    products = [
        math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and name != looked_up
    ]
    tied = math.prod(shapes["embedding"]) if model.tie_weights else 0
    return 6.0 * (sum(products) + tied)
