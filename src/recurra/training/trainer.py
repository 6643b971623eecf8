"""The training loop: batches in, better weights out, reports and checkpoints along the way.

Knows neither files of text nor the command line. Everything random comes from the seed, and
everything the loop remembers is in `Memory`, so that a checkpoint can hold it.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.errors import DivergenceError, NonFiniteError, RunError
from recurra.files import append_line
from recurra.inference.evaluate import Evaluation, evaluate
from recurra.inference.generate import generate
from recurra.inference.sampling import GenerationConfig
from recurra.model import RecurrentLM
from recurra.text.vocabulary import Vocabulary
from recurra.training.batches import Batch, BatchStream, Ids
from recurra.training.budget import Budget, Clock
from recurra.training.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from recurra.training.clipping import clip_gradients
from recurra.training.interruption import deferred_interrupt
from recurra.training.memory import Memory, Tally
from recurra.training.optimizer import build_optimizer
from recurra.training.plan import describe_plan, seconds_per_step
from recurra.training.progress import Moment, Progress, perplexity
from recurra.training.run_folder import RunFolder
from recurra.training.schedules import learning_rate

REPORTS_PER_RUN = 20
MAX_VALIDATION_TOKENS = 2**18
"""Reports validate on this many tokens at most; `recurra eval` takes the whole part."""
HOPELESS = 10.0
"""A loss this many times that of a blind guess will not come back."""


class Trainer:
    """Trains one model on one row of ids.

    Args:
        model: on its device already; trained in place, and left with the best weights.
        train_ids, val_ids: the two parts of the text; the second may be empty.
        val_sizes: characters and UTF-8 bytes of the second, without its first token.
        prompts: of the samples, prepared as the text was.
        vocabulary: knows every symbol of the prompts.
        config: how to train.
        folder: where reports, weights and checkpoints go.
        progress: who is told.
        clock: started when the run's time began.
        fingerprint: of text and settings; a checkpoint with another one is refused.

    Raises:
        SourceError: the text does not fill one batch.
    """

    def __init__(
        self,
        model: RecurrentLM,
        train_ids: Ids,
        val_ids: Ids,
        val_sizes: tuple[int, int],
        prompts: tuple[str, ...],
        vocabulary: Vocabulary,
        config: TrainingConfig,
        folder: RunFolder,
        progress: Progress,
        clock: Clock,
        fingerprint: str = "",
    ) -> None:
        self.model, self.vocabulary, self.config = model, vocabulary, config
        self.folder, self.progress = folder, progress
        self.stream = BatchStream(train_ids, config)
        self.val_ids, self.val_sizes = val_ids, val_sizes
        self.budget = Budget(config, self.stream.epoch_length(), clock)
        self.memory = Memory(fingerprint=fingerprint)
        self.optimizer = build_optimizer(model, config)
        self.state: tuple[Tensor, ...] | None = None
        self._prompts = prompts or ("",)
        self._next_report = 0.0

    def resume(self) -> None:
        """Take up the training where its last checkpoint left it.

        Raises:
            RunError: there is no checkpoint, it is damaged, or it belongs to another text or
                other settings.
        """
        self.state, record = load_checkpoint(self.folder.last, self.model, self.optimizer)
        try:
            memory = Memory.from_dict(record["memory"])
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.folder.last} is damaged: its record is not complete") from error
        if memory.fingerprint != self.memory.fingerprint:
            raise RunError(f"{self.folder.last} belongs to another text or other settings")
        self.memory = memory
        self.budget.clock.rewind(memory.seconds)
        self.folder.cut_after(memory.step)

    def fit(self) -> list[dict[str, Any]]:
        """Train until the budget is spent, early stopping says so, or Ctrl-C.

        Returns:
            All lines of metrics.jsonl. The model holds the best weights.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything is saved.
            NonFiniteError, DivergenceError: training failed; the best weights so far are on disk.
        """
        with self.progress, deferred_interrupt() as interrupted:
            if self.memory.finished:
                self.progress.message("this run had finished already")
            if self.memory.step == 0:
                self._announce()
                self._save_checkpoint()
            self.model.train()
            while not self._done():
                for batch in self.stream.epoch(self.memory.epoch, self.memory.position):
                    if self._done():
                        break
                    self._update(batch)
                    if self._report_due():
                        self._report()
                    if interrupted():
                        self._save_interrupted()
                        raise KeyboardInterrupt(
                            f"saved in {self.folder.path}; go on with"
                            f" recurra train --resume {self.folder.path}"
                        )
                else:
                    self.memory.epoch += 1
                    self.memory.position = 0
            return self._conclude()

    def _announce(self) -> None:
        seconds = seconds_per_step(self.model, self.stream)
        # Until the first report has shown it: reading forward takes a third of a training step.
        share = len(self.val_ids) / (self.config.batch_size * self.stream.num_steps)
        self.budget.reserve = seconds * min(share, MAX_VALIDATION_TOKENS) / 3 + 0.5
        lines = describe_plan(self.model, self.stream, self.budget, seconds, len(self.val_ids))
        self.progress.plan(lines)
        # What the start has cost of a budget in minutes is no reason to report after one update.
        self.memory.reports = int(self._spent() * REPORTS_PER_RUN)

    def _update(self, batch: Batch) -> None:
        started = time.perf_counter()
        memory, spent = self.memory, self._spent()
        ids = torch.from_numpy(batch.ids).to(self.model.device)
        targets = torch.from_numpy(batch.targets).to(self.model.device)
        loss, state = self.model.loss(
            ids,
            targets,
            None if batch.fresh else self.state,
            recurrent_gradient_scale=self.stream.recurrent_gradient_scale,
        )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * self.stream.loss_weight(batch))
        norm = self._clip(float(loss.detach()))
        lr = learning_rate(self.config, spent)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.state = tuple(s.detach() for s in state)
        memory.step += 1
        memory.position += 1
        memory.tokens += batch.num_tokens
        seconds = time.perf_counter() - started
        self.memory.since_report.add(float(loss.detach()), batch.num_tokens, seconds, norm, lr)
        self._show_moment()

    def _clip(self, loss: float) -> float:
        try:
            if not math.isfinite(loss):
                raise NonFiniteError(f"the loss is {loss}")
            return clip_gradients(
                self.model.named_parameters(),
                max_norm=self.config.clip_norm,
                max_value=self.config.clip_value,
            )
        except NonFiniteError as error:
            raise NonFiniteError(
                f"training stopped before update {self.memory.step + 1}: {error};"
                f" try a smaller --lr (it is {self.config.lr:g})"
            ) from error

    def _spent(self) -> float:
        return self.budget.spent(self.memory.step, self.memory.epoch, self.memory.position)

    def _done(self) -> bool:
        if self.memory.step == 0:
            return False  # however small the budget, one update is made and reported
        patience = self.config.patience
        stalled = patience is not None and self.memory.reports_since_best >= patience
        return self.memory.finished or stalled or self._spent() >= 1.0

    def _report_due(self) -> bool:
        if self.config.report_every is not None:
            return self.memory.step % self.config.report_every == 0
        # Reports shall not eat a budget in minutes: five times as long is spent on learning.
        if self.budget.minutes is not None and time.perf_counter() < self._next_report:
            return False
        return int(self._spent() * REPORTS_PER_RUN) > self.memory.reports

    def _sample_due(self) -> bool:
        since = self.memory.step - self.memory.last_sample
        return since >= (self.config.sample_every or 1) or self._done()

    def _show_moment(self) -> None:
        spent, seconds = self._spent(), self.budget.clock.seconds()
        tally = self.memory.since_report
        left = seconds / spent * (1.0 - spent) if spent > 0 else math.inf
        if self.budget.minutes is not None:
            left = self.budget.minutes * 60 - seconds
        self.progress.moment(
            Moment(spent, self.memory.step, tally.mean_nats, tally.tokens_per_second, left)
        )

    def _report(self) -> None:
        started = time.perf_counter()
        tally, memory = self.memory.since_report, self.memory
        blind = math.log(len(self.vocabulary))
        if tally.mean_nats > HOPELESS * max(blind, 1.0):
            raise DivergenceError(
                f"training diverged by update {memory.step}: {tally.mean_nats:.1f} nats per token,"
                f" where a blind guess has {blind:.1f}; try a smaller --lr"
                f" (it is {self.config.lr:g})"
            )
        try:
            evaluation = self._validate()
        except NonFiniteError as error:
            raise DivergenceError(
                f"training diverged by update {memory.step}: {error}; try a smaller --lr"
                f" (it is {self.config.lr:g})"
            ) from error
        record = self._record(evaluation)
        # Without a validation part there is nothing to choose by, and the latest is the best.
        nats = record["train_nats"] if evaluation is None else evaluation.nats_per_token
        if evaluation is None or nats < memory.best_loss:
            memory.best_loss = nats
            memory.best_step, memory.reports_since_best = memory.step, 0
            # No times in the file: the same run shall give the same bytes.
            save_weights(self.folder.model, self.model, {"step": memory.step, "nats": nats})
        else:
            memory.reports_since_best += 1
        append_line(self.folder.metrics, record)
        self.progress.report(record)
        if self._sample_due():
            self._sample()
        memory.since_report = Tally()
        memory.reports = int(self._spent() * REPORTS_PER_RUN)
        self._save_checkpoint()
        # Time must be left for one more of these when the budget ends.
        cost = time.perf_counter() - started
        self.budget.reserve = 1.2 * cost + 0.2
        self._next_report = time.perf_counter() + 5.0 * cost

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
        )

    def _record(self, evaluation: Evaluation | None) -> dict[str, Any]:
        tally, memory = self.memory.since_report, self.memory
        nats = evaluation.nats_per_token if evaluation else tally.mean_nats
        known = perplexity(nats)
        return {
            "step": memory.step,
            "epoch": round(memory.epoch + memory.position / self.stream.epoch_length(), 4),
            "tokens": memory.tokens,
            "seconds": round(self.budget.clock.seconds(), 3),
            "train_nats": tally.mean_nats,
            "val_nats": evaluation.nats_per_token if evaluation else None,
            "bits_per_char": evaluation.bits_per_char if evaluation else None,
            "perplexity": known if math.isfinite(known) else None,
            "lr": tally.lr,
            "grad_norm": tally.grad_norm,
            "tokens_per_second": round(tally.tokens_per_second, 1),
        }

    def _sample(self) -> None:
        self.memory.last_sample = self.memory.step
        for number, prompt in enumerate(self._prompts):
            settings = GenerationConfig(
                max_new_tokens=self.config.sample_length,
                temperature=self.config.sample_temperature,
                seed=(self.config.seed + self.memory.step + 1_000_003 * number) % 2**63,
            )
            (text,) = generate(self.model, self.vocabulary, prompt, settings)
            record = {"step": self.memory.step, "prompt": prompt, "text": text}
            append_line(self.folder.samples, record)
            self.progress.sample(prompt, text)

    def _save_checkpoint(self) -> None:
        self.memory.seconds = self.budget.clock.seconds()
        record = {"memory": asdict(self.memory)}
        save_checkpoint(self.folder.last, self.model, self.optimizer, self.state, record)

    def _save_interrupted(self) -> None:
        self._save_checkpoint()
        if not self.folder.model.is_file():
            # Stopped before the first report: what was learned so far is the best there is.
            save_weights(self.folder.model, self.model, {"step": self.memory.step, "nats": None})

    def _conclude(self) -> list[dict[str, Any]]:
        if self.memory.since_report.tokens:
            self._report()
        if not self.memory.finished:
            self.memory.finished = True
            self._save_checkpoint()
        if self.folder.model.is_file():
            load_weights(self.folder.model, self.model)
        self.model.eval()
        records = self.folder.read_metrics()
        self.progress.finished(records)
        return records
