"""Periodic evaluation: validation loss, best weights and generated samples.

A report is first computed, which changes nothing and may be interrupted, and then published. Knows
neither when a report is due nor how the model learns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from recurra.config import TrainingConfig
from recurra.data.batches import Ids
from recurra.engine.sampling import GenerationConfig
from recurra.errors import DivergenceError
from recurra.inference.evaluate import Evaluation, evaluate
from recurra.inference.generate import generate
from recurra.io.files import append_line, replace_bytes
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.progress import Progress, perplexity
from recurra.runs.directory import RunDirectory
from recurra.runs.train_state import Memory, Tally, Timing
from recurra.runs.weights import weights_to_bytes
from recurra.runtime.distributed import Processes
from recurra.text.vocabulary import Vocabulary

MAX_VALIDATION_TOKENS = 2**18
"""Reports validate on this many tokens at most; `recurra eval` takes the whole part."""
HOPELESS = 10.0
"""Training counts as diverged when the loss exceeds this multiple of log(vocab_size)."""


@dataclass(frozen=True)
class Report:
    """A line of metrics.jsonl, and those of samples.jsonl that go with it."""

    record: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def nats(self) -> float:
        """What the weights are chosen by: the validation loss, or the training loss without one."""
        validated = self.record["val_nats"]
        return float(self.record["train_nats"] if validated is None else validated)


class Reporter:
    """Computes and publishes the reports of one run.

    Attributes:
        best: the bytes of the file of the best weights; None before the first report.

    Args:
        model, vocabulary, config, folder, progress, processes: as the trainer has them.
        val_ids: the validation part; may be empty.
        val_sizes: its characters and UTF-8 bytes, without its first token.
        prompts: of the samples, prepared as the text was.
    """

    def __init__(
        self,
        model: RecurrentLM,
        vocabulary: Vocabulary,
        val_ids: Ids,
        val_sizes: tuple[int, int],
        prompts: tuple[str, ...],
        config: TrainingConfig,
        folder: RunDirectory,
        progress: Progress,
        processes: Processes,
    ) -> None:
        self.model, self.vocabulary, self.config = model, vocabulary, config
        self.val_ids, self.val_sizes = val_ids, val_sizes
        self.folder, self.progress, self.processes = folder, progress, processes
        self.best: bytes | None = None
        self._prompts = prompts or ("",)

    def compute(
        self, memory: Memory, timing: Timing, epoch_length: int, *, with_samples: bool
    ) -> Report:
        """Validate and write samples; changes nothing.

        Raises:
            DivergenceError: the training loss is hopeless.
            NonFiniteError: the model's predictions are.
        """
        self._check_hope(memory)
        evaluation = self._validate()
        record = _record(memory, timing, epoch_length, evaluation)
        # Only the first process writes them down.
        wanted = with_samples and self.processes.is_first
        return Report(record, self._samples(memory.step) if wanted else [])

    def publish(self, report: Report, memory: Memory) -> None:
        """Keep the weights if they are the best, write the lines, tell; count it in `memory`."""
        self._keep_if_best(report, memory)
        if self.processes.is_first:
            append_line(self.folder.metrics, report.record)
            for sample in report.samples:
                append_line(self.folder.samples, sample)
        self.progress.report(report.record)
        for sample in report.samples:
            self.progress.sample(sample["prompt"], sample["text"])
        memory.since_report = Tally()
        memory.last_report = memory.step

    def _keep_if_best(self, report: Report, memory: Memory) -> None:
        # Without a validation part there is nothing to choose by, and the latest is the best.
        unvalidated = report.record["val_nats"] is None
        if not unvalidated and memory.best_loss is not None and report.nats >= memory.best_loss:
            memory.reports_since_best += 1
            return
        memory.best_loss, memory.best_step = report.nats, memory.step
        memory.reports_since_best = 0
        if self.processes.is_first:
            # No times in the file: the same run shall give the same bytes.
            self.best = weights_to_bytes(self.model, {"step": memory.step, "nats": report.nats})
            replace_bytes(self.folder.model, self.best)

    def _check_hope(self, memory: Memory) -> None:
        blind, nats = math.log(len(self.vocabulary)), memory.since_report.mean_nats
        if nats > HOPELESS * max(blind, 1.0):
            raise DivergenceError(
                f"training diverged by update {memory.step}: {nats:.1f} nats per token, where a"
                f" blind guess has {blind:.1f}; try a smaller --lr (it is {self.config.lr:g})"
            )

    def _validate(self) -> Evaluation | None:
        if len(self.val_ids) < 2:
            return None
        num_chars, num_bytes = self.val_sizes
        return evaluate(
            self.model,
            self.val_ids,
            num_chars=num_chars,
            num_bytes=num_bytes,
            unknown_id=self.vocabulary.unknown_id,
            num_streams=self.config.batch_size,
            max_tokens=MAX_VALIDATION_TOKENS,
            processes=self.processes,
        )

    def _samples(self, step: int) -> list[dict[str, Any]]:
        samples = []
        for number, prompt in enumerate(self._prompts):
            settings = GenerationConfig(
                max_new_tokens=self.config.sample_length,
                temperature=self.config.sample_temperature,
                seed=(self.config.seed + step + 1_000_003 * number) % 2**63,
            )
            (text,) = generate(self.model, self.vocabulary, prompt, settings)
            samples.append({"step": step, "prompt": prompt, "text": text})
        return samples


def _record(
    memory: Memory, timing: Timing, epoch_length: int, evaluation: Evaluation | None
) -> dict[str, Any]:
    tally = memory.since_report
    nats = evaluation.nats_per_token if evaluation else tally.mean_nats
    known = perplexity(nats)
    return {
        "step": memory.step,
        "epoch": round(memory.epochs(epoch_length), 4),
        "tokens": memory.tokens,
        "seconds": round(timing.seconds, 3),
        "train_nats": tally.mean_nats,
        "val_nats": evaluation.nats_per_token if evaluation else None,
        # Not known where no character is completed.
        "bits_per_char": evaluation.to_dict()["bits_per_char"] if evaluation else None,
        "perplexity": known if math.isfinite(known) else None,
        "lr": tally.lr,
        "grad_norm": tally.grad_norm,
        "tokens_per_second": round(tally.tokens / max(timing.updates, 1e-9), 1),
    }
