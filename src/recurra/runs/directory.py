"""A run directory: its files and its lock. `staging.py` creates and replaces it.

    config.json          everything needed to rebuild the model and repeat the training
    vocabulary.json      the tokens
    tokens.bin, .json    the text as ids, and where it came from
    model.safetensors    the best weights by validation loss
    initial.safetensors  the weights before the first step, if another run was fine-tuned
    metrics.jsonl        one line per evaluation
    loss.jsonl           the training loss about twice a second, at most 1,000 points
    samples.jsonl        text that the model generated at the evaluations
    failures.jsonl       the batches on which the loss became NaN or infinite, if any
    checkpoints/         the latest checkpoints; see checkpoint_store.py
    loss.svg             the loss curve, with --plot
    .lock                the lock file, locked by the process that trains
    .job                 the torchrun job that created the run, if it was a restartable one

Files are replaced atomically, except that lines are appended to metrics, samples and failures. The
contents are defined in `checkpoint.py`, `weights.py`, `training/callbacks/evaluation.py` and
`training/callbacks/loss_curve.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from filelock import FileLock, Timeout

from recurra.config import RunConfig
from recurra.errors import ConfigError, RunError
from recurra.io.files import permission_errors_explained, replace_bytes, write_bytes
from recurra.io.json_files import append_line, read_json, read_lines, write_json
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runs.checkpoint_store import CheckpointStore
from recurra.runs.history import HistoryMark, mark_of, restore
from recurra.runs.provenance import Provenance
from recurra.runs.store import best_record
from recurra.runs.weights import load_weights
from recurra.version import __version__

FORMAT = 1
LOCK, JOB = ".lock", ".job"
METRICS = {
    "seconds": False,
    "train_nats": False,
    "tokens_per_second": False,
    "val_nats": True,
    "bits_per_char": True,
    "perplexity": True,
}
"""The required fields of a line of metrics.jsonl, and whether each can be null."""
HISTORIES = METRICS_FILE, SAMPLES_FILE, FAILURES_FILE = (
    "metrics.jsonl",
    "samples.jsonl",
    "failures.jsonl",
)
"""The files to which training appends one line at a time."""
LOSSES_FILE = "loss.jsonl"
LOSSES = ("tokens", "seconds", "train_nats")
"""The required fields of a line of loss.jsonl, besides the step."""
TOKEN_FILES = ("tokens.bin", "tokens.json", "vocabulary.json")


class RunDirectory:
    """The files of one run.

    Args:
        path: path of the directory, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.vocabulary = self.path / "vocabulary.json"
        self.model = self.path / "model.safetensors"
        self.initial = self.path / "initial.safetensors"
        self.metrics, self.samples, self.failures = (self.path / name for name in HISTORIES)
        self.checkpoints = CheckpointStore(self.path / "checkpoints")
        self.losses = self.path / LOSSES_FILE
        self.curve = self.path / "loss.svg"
        self._lock = FileLock(self.path / LOCK)

    @property
    def is_run(self) -> bool:
        """Whether the directory contains a run."""
        try:
            return {"format", "text", "model", "training"} <= read_json(self.config).keys()
        except RunError:
            return False

    def claim(self, job: str) -> None:
        """Record the torchrun job that creates this run."""
        write_bytes(self.path / JOB, job.encode())

    def is_made_by(self, job: str) -> bool:
        """Return whether the given torchrun job created this run."""
        file = self.path / JOB
        return file.is_file() and file.read_bytes() == job.encode()

    @property
    def has_copy_of_model(self) -> bool:
        """Whether a checkpoint contains a copy of the best weights."""
        return any(self.checkpoints.folder.glob("step-*/best.safetensors"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory.

        The operating system releases the lock of a process that ends.

        Raises:
            RunError: if another process is training in the directory, it does not exist, or it
                cannot be written to.
        """
        if not self.path.is_dir():
            raise RunError(f"{self.path} contains no run (the directory does not exist)")
        try:
            # `staging.staged_run` leaves a new run locked.
            with permission_errors_explained(
                self.path, "copy the run to a directory that can be written to"
            ):
                if not self._lock.is_locked:
                    self._lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{self.path} is in use: another process is training in it") from None
        try:
            yield
        finally:
            self.unlock()

    def unlock(self) -> None:
        """Release the lock of the directory."""
        self._lock.release()

    def take_lock_of(self, renamed: RunDirectory) -> None:
        """Hold the lock of a locked directory that was renamed to this one."""
        if os.name != "nt":
            # The lock file was renamed together with its directory.
            self._lock = renamed._lock
        self._lock.acquire(blocking=False)

    def histories(self) -> tuple[Path, ...]:
        """Return the paths of the JSON lines files, to which training appends."""
        return self.metrics, self.samples, self.failures

    def mark_histories(self) -> dict[str, HistoryMark]:
        """Flush the histories that exist to disk, and return their lengths by file name."""
        return {file.name: mark_of(file) for file in self.histories() if file.is_file()}

    def cut_histories(self, marks: Mapping[str, HistoryMark | None]) -> list[str]:
        """Cut off what was appended after these marks; None removes a file.

        Returns:
            Messages about damaged files, of which only a part could be kept.
        """
        messages = []
        for name, mark in marks.items():
            is_metrics = name == METRICS_FILE
            checks = (lambda record: _damaged_field(record) is None,) if is_metrics else ()
            messages.append(restore(self.path / name, mark, *checks))
        return [message for message in messages if message is not None]

    def replace_histories(self, files: Mapping[str, bytes | None]) -> None:
        """Replace these files by the given contents; None removes a file."""
        for name, data in files.items():
            if data is None:
                (self.path / name).unlink(missing_ok=True)
            else:
                replace_bytes(self.path / name, data)

    def remove_histories(self) -> None:
        """Remove the JSON lines files of an earlier training run."""
        for file in (*self.histories(), self.losses):
            file.unlink(missing_ok=True)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        append_line(self.metrics, record)

    def append_sample(self, record: dict[str, Any]) -> None:
        """Append a line to samples.jsonl."""
        append_line(self.samples, record)

    def append_failure(self, record: dict[str, Any]) -> None:
        """Append a line to failures.jsonl."""
        append_line(self.failures, record)

    def write_losses(self, points: Sequence[dict[str, Any]]) -> None:
        """Replace loss.jsonl."""
        lines = [json.dumps(point, allow_nan=False) + "\n" for point in points]
        replace_bytes(self.losses, "".join(lines).encode())

    def read_losses(self) -> list[dict[str, Any]]:
        """Return the records of loss.jsonl, or an empty list if there is no such file.

        Raises:
            RunError: if a line is damaged, or a field is missing or of another type.
        """
        points = list(read_lines(self.losses))
        for point in points:
            for name in LOSSES:
                value = point.get(name)
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise RunError(f"{self.losses} is damaged: {name} is {str(value)[:80]!r}")
        return points

    def write_weights(self, data: bytes) -> None:
        """Replace model.safetensors."""
        replace_bytes(self.model, data)

    def load_best_weights(self, model: RecurrentLM) -> None:
        """Load model.safetensors into a model, if the file exists.

        Raises:
            RunError: if the file is damaged or does not match the model.
        """
        if self.model.is_file():
            load_weights(self.model, model)

    def write_config(self, config: RunConfig, provenance: Provenance) -> None:
        """Write config.json."""
        record = {"format": FORMAT, "recurra": __version__, **provenance.to_dict()}
        write_json(self.config, record | config.to_dict())

    def read_config(self) -> RunConfig:
        """Read config.json.

        Raises:
            RunError: if the directory contains no run, or the file is damaged or of another format.
        """
        record = self._read_record()
        values = {k: v for k, v in record.items() if k in ("text", "model", "training")}
        try:
            return RunConfig.from_dict(values)
        except ConfigError as error:
            raise RunError(f"{self.config}: {error}") from error

    def read_provenance(self) -> Provenance:
        """Return where the run comes from.

        Raises:
            RunError: as for `read_config`.
        """
        try:
            return Provenance.from_dict(self._read_record())
        except ConfigError as error:
            raise RunError(f"{self.config}: {error}") from error

    def read_sources(self) -> list[str]:
        """Return the sources of the training text, as specified by the user.

        Raises:
            RunError: as for `read_config`.
        """
        return list(self.read_provenance().sources)

    def _read_record(self) -> dict[str, Any]:
        if not self.config.is_file():
            raise RunError(f"{self.path} contains no run ({self.config.name} is missing)")
        record = read_json(self.config)
        if record.get("format") != FORMAT:
            raise RunError(
                f"{self.config} has format {shortened(record.get('format'))}, but recurra"
                f" {__version__} reads only format {FORMAT}"
            )
        return record

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl, or an empty list before the first evaluation.

        Raises:
            RunError: if a line is damaged, or a required field is missing or of another type.
        """
        records = list(read_lines(self.metrics))
        for record in records:
            if (name := _damaged_field(record)) is not None:
                value = str(record.get(name))[:80]
                raise RunError(f"{self.metrics} is damaged: {name} is {value!r}")
        return records

    def best_metrics(self) -> dict[str, Any]:
        """Return the record of metrics.jsonl that belongs to the best weights; see `best_record`.

        Raises:
            RunError: as for `read_metrics`.
        """
        return best_record(self.read_metrics())


def _damaged_field(record: Mapping[str, Any]) -> str | None:
    """Return the first field of `METRICS` that is missing or of another type in a record."""
    for name, may_be_none in METRICS.items():
        value = record.get(name)
        is_null = value is None and may_be_none and name in record
        if not (isinstance(value, (int, float)) or is_null):
            return name
    return None
