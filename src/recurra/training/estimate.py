"""Estimate time and memory before training starts."""

from __future__ import annotations

import time

from recurra.config import ModelConfig, TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.inference.evaluate import evaluate
from recurra.recurrence.cells import find_cell
from recurra.report.progress import format_count, format_seconds
from recurra.runs.train_state import MAX_VALIDATION_TOKENS
from recurra.training.batch_schedule import stage_at
from recurra.training.session import TrainingSession
from recurra.training.trials import seconds_per_step

MAX_VALIDATION_SHARE, MIN_VALIDATION_TOKENS = 0.05, 2048
"""An evaluation reads as many tokens as it can in this fraction of a time budget, and at least the
minimum. With a large vocabulary, an evaluation of all tokens can take longer than the budget."""


def memory_bytes(model: ModelConfig, training: TrainingConfig, num_steps: int, weights: int) -> int:
    """Estimate the memory of a training step in bytes.

    The estimate includes the weights, their gradients and the optimizer state. For each token of a
    batch it includes the gates, their derivatives and the states of each layer, and the logits
    twice.

    Args:
        model: the configuration of the model.
        training: the batch size and the optimizer.
        num_steps: number of time steps in a batch.
        weights: number of parameters.
    """
    slots = len(OPTIMIZERS[training.optimizer].slots_with(training))
    gates = find_cell(model.cell).num_gates
    per_token = model.num_layers * (2 * gates + 4) * model.hidden_size + 2 * model.vocab_size
    tokens = training.batch_size * num_steps
    return 4 * (weights * (2 + slots) + tokens * per_token)


def announce_plan(session: TrainingSession) -> None:
    """Measure a step, report the estimated cost, and reserve time for the last evaluation."""
    seconds = seconds_per_step(session.model, session.stream, session.context.processes)
    lines = describe_plan(session, seconds)
    if session.budget.minutes is not None and len(session.dataset.val) >= 2:
        lines += _plan_validation(session, session.budget.minutes * 60)
    session.context.progress.plan(lines)


def _plan_validation(session: TrainingSession, seconds: float) -> list[str]:
    """Limit the validation by its measured speed, and reserve time for the last one.

    Args:
        session: the training.
        seconds: the time budget.

    Returns:
        A line about the limit, if there is one.
    """
    available = len(session.dataset.val) - 1
    batch = session.config.batch_size * session.stream.num_steps
    trial = min(available, batch, MIN_VALIDATION_TOKENS)
    _validate(session, trial)  # The first pass allocates memory and builds code.
    started = time.perf_counter()
    _validate(session, trial)
    per_token = (time.perf_counter() - started) / trial
    # The measurement of the first process applies to all.
    processes = session.context.processes
    (per_token,) = processes.sum([per_token if processes.is_first else 0.0])
    affordable = int(MAX_VALIDATION_SHARE * seconds / per_token)
    limit = min(max(affordable, MIN_VALIDATION_TOKENS), MAX_VALIDATION_TOKENS)
    session.timing.validation_tokens = limit
    session.budget.reserve = 1.2 * per_token * min(limit, available) + 0.5
    if limit >= min(available, MAX_VALIDATION_TOKENS):
        return []
    return [
        f"validate  the first {limit:,} of {available:,} tokens, so that an evaluation takes about"
        f" {MAX_VALIDATION_SHARE:.0%} of the time; recurra eval reads all of them"
    ]


def _validate(session: TrainingSession, num_tokens: int) -> None:
    evaluate(
        session.model,
        session.dataset.val,
        num_streams=session.config.batch_size,
        max_tokens=num_tokens,
        processes=session.context.processes,
    )


def describe_plan(session: TrainingSession, step_seconds: float) -> list[str]:
    """Return three lines of text: the model, the text and the estimated cost.

    Args:
        session: the training.
        step_seconds: duration of a step in seconds.
    """
    model, stream, budget = session.model, session.stream, session.budget
    num_val_tokens, num_processes = len(session.dataset.val), session.context.processes.count
    config, training = model.config, stream.config
    width = f"embedding {config.embedding_size}" if config.embedding_size else "one-hot input"
    layers = f"{config.num_layers} layer" + ("s" if config.num_layers > 1 else "")
    steps = budget.total_steps(step_seconds)
    memory = memory_bytes(config, training, stream.num_steps, model.num_parameters)
    per_step = training.batch_size * stream.num_steps
    rate = per_step / step_seconds
    at_first = " at first" if stage_at(budget.config, 1.0) > 0 else ""
    shared = f" by {num_processes} processes" if num_processes > 1 else ""
    duration = budget.total_seconds(step_seconds)
    return [
        f"model     {config.cell}, {layers} of {config.hidden_size} units, {width},"
        f" vocabulary {config.vocab_size:,}: {model.num_parameters:,} parameters"
        f" ({session.backend} on {model.device}, {config.precision})",
        f"text      {len(stream.ids):,} tokens for training, {num_val_tokens:,} for validation",
        f"training  about {steps:,} steps of {training.batch_size} x {stream.num_steps} tokens"
        f"{at_first}{shared}, {format_count(rate)} tokens/s, {format_seconds(duration)} in total,"
        f" {memory / 2**20:,.0f} MB",
    ]
