"""Periodic evaluation: validation loss, best weights and generated samples.

A report is computed first, which changes no state and can be interrupted, and published afterwards.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from recurra.engine.sampling import GenerationConfig
from recurra.errors import DivergenceError
from recurra.inference.evaluate import Evaluation as EvaluationResult
from recurra.inference.evaluate import evaluate
from recurra.inference.generate import generate
from recurra.report.progress import perplexity
from recurra.runs.train_state import RunningMean
from recurra.runs.weights import weights_to_bytes
from recurra.training.callbacks.callback import Callback
from recurra.training.callbacks.checkpointing import Checkpointing
from recurra.training.context import RunContext
from recurra.training.session import TrainingSession

REPORTS_PER_RUN = 20
"""Number of reports in a run, at equal distances, unless `report_every` is set."""
MIN_REPORT_INTERVAL_RATIO = 20.0
"""Minimum time between two reports of a time budget, as a multiple of the duration of a report."""
DIVERGENCE_FACTOR = 10.0
"""Training has diverged if the loss exceeds this multiple of log(vocab_size)."""


@dataclass(frozen=True)
class Report:
    """A record of metrics.jsonl with its records of samples.jsonl."""

    record: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def nats(self) -> float:
        """The loss that selects the best weights: validation loss, or training loss without one."""
        validated = self.record["val_nats"]
        return float(self.record["train_nats"] if validated is None else validated)


class Evaluation(Callback):
    """Callback that computes and publishes the reports of a run.

    Args:
        prompts: prompts of the samples, preprocessed like the text; () is an empty prompt.
        checkpointing: saves after a report; the duration of a report includes the checkpoint.
    """

    def __init__(self, prompts: tuple[str, ...], checkpointing: Checkpointing) -> None:
        self._prompts = prompts or ("",)
        self._checkpointing = checkpointing

    def before_step(self, session: TrainingSession) -> None:
        """Compute and publish a report if one is due.

        Raises:
            DivergenceError: the training loss exceeds `DIVERGENCE_FACTOR` times log(vocab_size).
            NonFiniteError: the model's logits are NaN or infinite.
        """
        if self._is_due(session):
            since = session.state.step - session.state.last_sample
            self.report(session, with_samples=since >= (session.config.sample_every or 1))

    def finish(self, session: TrainingSession) -> None:
        """Report on the steps since the last report; raises the same errors as `before_step`."""
        if session.has_unreported_steps:
            self.report(session, with_samples=True)

    def report(self, session: TrainingSession, *, with_samples: bool) -> None:
        """Compute and publish a report; raises the same errors as `before_step`.

        Args:
            session: the training.
            with_samples: whether to generate samples.
        """
        state, timing, clock = session.state, session.timing, session.budget.clock
        started = clock.seconds()
        timing.seconds = started
        session.collect()
        with session.engine.averaged_weights():
            with _interruptible(session.context):
                report = self._compute(session, with_samples=with_samples)
            if with_samples:
                state.last_sample = state.step
            self._publish(report, session)
        session.share_progress()
        state.reports = int(session.fraction * REPORTS_PER_RUN)
        timing.updates = 0.0
        self._checkpointing.before_step(session)
        # Reserve time for one more report at the end of the budget.
        cost = clock.seconds() - started
        session.budget.reserve = timing.reserve = 1.2 * cost + 0.2
        timing.next_report = clock.seconds() + MIN_REPORT_INTERVAL_RATIO * cost
        session.share_progress()

    def _is_due(self, session: TrainingSession) -> bool:
        state = session.state
        if not session.has_unreported_steps:
            return False
        if session.config.report_every is not None:
            return state.step % session.config.report_every == 0
        due = int(session.fraction * REPORTS_PER_RUN) > state.reports
        if session.budget.minutes is None or not due:
            return due
        # Limit the share of a time budget that is spent on evaluation.
        waiting = session.budget.clock.seconds() < session.timing.next_report
        processes = session.context.processes
        return not processes.sum([float(waiting and processes.is_first)])[0]

    def _compute(self, session: TrainingSession, *, with_samples: bool) -> Report:
        """Validate and generate samples, without a change of state; can be interrupted."""
        _check_loss(session)
        evaluation = _validate(session)
        record = _record(session, evaluation)
        # Only the first process writes samples.
        generates = with_samples and session.context.processes.is_first
        return Report(record, self._samples(session) if generates else [])

    def _publish(self, report: Report, session: TrainingSession) -> None:
        """Keep the weights if they are the best, write the records, and update the state."""
        self._keep_if_best(report, session)
        if session.context.processes.is_first:
            session.store.append_metrics(report.record)
            for sample in report.samples:
                session.store.append_sample(sample)
        session.context.progress.report(report.record)
        for sample in report.samples:
            session.context.progress.sample(sample["prompt"], sample["text"])
        session.state.since_report = RunningMean()
        session.state.last_report = session.state.step

    def _keep_if_best(self, report: Report, session: TrainingSession) -> None:
        # Without a validation loss, the latest weights count as the best.
        state = session.state
        unvalidated = report.record["val_nats"] is None
        if not unvalidated and state.best_loss is not None and report.nats >= state.best_loss:
            state.reports_since_best += 1
            return
        state.best_loss, state.best_step = report.nats, state.step
        state.reports_since_best = 0
        if session.context.processes.is_first:
            # The file contains no times, so that equal runs write equal bytes.
            record = {"step": state.step, "nats": report.nats}
            best = weights_to_bytes(session.model, record)
            self._checkpointing.best_weights.data = best
            session.store.write_weights(best)

    def _samples(self, session: TrainingSession) -> list[dict[str, Any]]:
        samples, config, step = [], session.config, session.state.step
        for number, prompt in enumerate(self._prompts):
            settings = GenerationConfig(
                max_new_tokens=config.sample_length,
                temperature=config.sample_temperature,
                seed=(config.seed + step + 1_000_003 * number) % 2**63,
            )
            (text,) = generate(session.model, session.dataset.vocabulary, prompt, settings)
            samples.append({"step": step, "prompt": prompt, "text": text})
        return samples


def _interruptible(context: RunContext) -> AbstractContextManager[None]:
    # If one of several processes stopped here, the others would wait for it forever.
    is_single = context.processes.count == 1
    return context.signals.raising() if is_single else context.signals.protected()


def _check_loss(session: TrainingSession) -> None:
    uniform = math.log(len(session.dataset.vocabulary))
    nats = session.state.since_report.mean_nats
    if nats > DIVERGENCE_FACTOR * max(uniform, 1.0):
        raise DivergenceError(
            f"training diverged by step {session.state.step}: the loss is {nats:.1f} nats per"
            f" token, and that of uniform predictions {uniform:.1f}; try a smaller --lr (it is"
            f" {session.config.lr:g})"
        )


def _validate(session: TrainingSession) -> EvaluationResult | None:
    dataset = session.dataset
    if len(dataset.val) < 2:
        return None
    return evaluate(
        session.model,
        dataset.val,
        num_chars=dataset.num_val_chars,
        num_bytes=dataset.num_val_bytes,
        unknown_id=dataset.vocabulary.unknown_id,
        num_streams=session.config.batch_size,
        max_tokens=session.timing.validation_tokens,
        processes=session.context.processes,
    )


def _record(session: TrainingSession, evaluation: EvaluationResult | None) -> dict[str, Any]:
    state, timing = session.state, session.timing
    training = state.since_report
    nats = evaluation.nats_per_token if evaluation else training.mean_nats
    known = perplexity(nats)
    return {
        "step": state.step,
        "epoch": round(state.epochs(session.stream.epoch_length()), 4),
        "tokens": state.tokens,
        "seconds": round(timing.seconds, 3),
        "train_nats": training.mean_nats,
        "val_nats": evaluation.nats_per_token if evaluation else None,
        # None if the validation part completes no character.
        "bits_per_char": evaluation.to_dict()["bits_per_char"] if evaluation else None,
        "perplexity": known if math.isfinite(known) else None,
        "lr": training.lr,
        "grad_norm": training.grad_norm,
        "tokens_per_second": round(training.tokens / max(timing.updates, 1e-9), 1),
    }
