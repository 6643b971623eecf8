"""A run directory: its files, its lock and its creation.

    config.json          everything needed to rebuild the model and repeat the training
    vocabulary.json      the tokens
    tokens.bin, .json    the text as ids, and where it came from
    model.safetensors    the best weights by validation loss
    metrics.jsonl        one line per evaluation
    samples.jsonl        text that the model generated at the evaluations
    failures.jsonl       the batches on which the loss became NaN or infinite, if any
    checkpoints/         the latest checkpoints; see checkpoint_store.py
    loss.svg             the loss curve, with --plot
    .lock                the lock file, locked by the process that trains
    .job                 the torchrun job that created the run, if it was a restartable one

Files are replaced atomically, except that lines are appended to the JSON lines files. Their
contents are defined in `checkpoint.py`, `weights.py` and `training/callbacks/evaluation.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from filelock import FileLock, Timeout

from recurra.config import RunConfig
from recurra.errors import ConfigError, RunError
from recurra.io.files import (
    UNFINISHED,
    append_line,
    flush,
    link_or_copy,
    make_folders,
    missing_folders,
    read_json,
    read_lines,
    remove_empty,
    remove_unfinished,
    replace_bytes,
    umask,
    write_bytes,
    write_json,
)
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runs.checkpoint_store import CheckpointStore, is_name
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
        self.metrics, self.samples, self.failures = (self.path / name for name in HISTORIES)
        self.checkpoints = CheckpointStore(self.path / "checkpoints")
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
            RunError: if another process is training in the directory, or it does not exist.
        """
        if not self.path.is_dir():
            raise RunError(f"{self.path} contains no run (the directory does not exist)")
        try:
            # `prepared` leaves a new run locked.
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

    def remove_unfinished(self) -> None:
        """Remove the unfinished files of killed processes in this directory and beside it."""
        place = self.path.resolve()
        if (aside := _aside(place)).is_dir():
            # A process was killed while it replaced an older run (--force).
            if place.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(place)
        # Match exactly the eight characters of mkdtemp, not runs whose names begin like this one's.
        name = re.compile(rf"\.{re.escape(place.name)}-\w{{8}}{re.escape(UNFINISHED)}")
        if place.parent.is_dir():
            for staging in place.parent.iterdir():
                if name.fullmatch(staging.name):
                    _remove_if_abandoned(staging)
        if place.is_dir():
            remove_unfinished(place)

    @contextmanager
    def prepared(self, *, force: bool) -> Iterator[RunDirectory]:
        """Yield a temporary directory in which a new run is prepared.

        At the end of the block the temporary directory replaces this one and remains locked. If the
        block fails, the temporary directory is removed and this one is unchanged.

        Args:
            force: whether to replace an older run. The files of its token file are linked into the
                temporary directory, so that they can be reused for the same text and settings.

        Raises:
            RunError: if the directory is not empty and `force` is False; or if it contains other
                files than those of a run, or another process is training in it.
        """
        place = self.path.resolve()
        self.remove_unfinished()
        self._check_free(force=force)
        # A signal can arrive at any time: the names are known before a directory is created.
        made = missing_folders(place.parent)
        prefix = f".{place.name}-"
        staging = None
        try:
            make_folders(place.parent)
            staging = RunDirectory(
                tempfile.mkdtemp(prefix=prefix, suffix=UNFINISHED, dir=place.parent)
            )
            with staging.locked(), self._old_run_locked():
                for name in TOKEN_FILES:
                    if (place / name).is_file():
                        link_or_copy(place / name, staging.path / name)
                yield staging
                # Another process could have created a run while the text was read.
                self._check_free(force=force)
                # mkdtemp grants access only to the owner; the umask applies to a run.
                staging.path.chmod(0o777 & ~umask())
                self._replace_by(staging, place)
        finally:
            if staging is not None:
                shutil.rmtree(staging.path, ignore_errors=True)
            remove_empty(made)

    @contextmanager
    def _old_run_locked(self) -> Iterator[None]:
        """Hold the lock of the older run, if there is one, while a new run is prepared."""
        if not self.is_run:
            yield
            return
        with RunDirectory(self.path).locked():
            yield

    def _replace_by(self, staging: RunDirectory, place: Path) -> None:
        """Rename a prepared directory to `place`, then remove the older run."""
        if os.name == "nt":
            # Windows cannot rename a directory that contains an open file.
            staging._lock.release()
        aside = _aside(place)
        if place.exists():
            place.rename(aside)
        try:
            staging.path.rename(place)
        except OSError:
            if aside.exists():
                aside.rename(place)
            raise
        flush(place.parent)
        shutil.rmtree(aside, ignore_errors=True)
        if os.name != "nt":
            # The lock file was renamed together with its directory.
            self._lock = staging._lock
        self._lock.acquire(blocking=False)

    def check_removable(self) -> None:
        """Check that the directory contains only run files and is not locked by another process.

        Raises:
            RunError: if it contains other files, or another process is training in it.
        """
        self._check_free(force=True)
        with self.locked():
            pass

    def _check_free(self, *, force: bool) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; --out must be a directory")
        if self.path.resolve() == Path.cwd():
            raise RunError(f"{self.path} is the current directory; choose another --out")
        if not any(self.path.iterdir()):
            return
        if not self.is_run:
            raise RunError(f"{self.path} is not a run directory; choose another --out")
        if not force:
            raise RunError(
                f"{self.path} already exists; choose another --out, or replace it with --force"
                " (from Python: force=True)"
            )
        files = (p for p in self.path.rglob("*") if not p.is_dir())
        foreign = sorted(str(p.relative_to(self.path)) for p in files if not self._is_run_file(p))
        if foreign:
            raise RunError(
                f"{self.path} contains {foreign[0]}, which is not a file of a run; --force does not"
                " remove it"
            )

    def _is_run_file(self, file: Path) -> bool:
        named = {self.config, self.model, *self.histories(), self.curve}
        named |= {self.path / name for name in TOKEN_FILES}
        if file.name.startswith("."):
            return file.name in (LOCK, JOB) or file.name.endswith(UNFINISHED)
        is_checkpoint = file.parent.parent == self.checkpoints.folder and is_name(file.parent.name)
        return file in named or is_checkpoint or file.parent.name.endswith(UNFINISHED)

    def histories(self) -> tuple[Path, ...]:
        """Return the paths of the JSON lines files, to which training appends."""
        return self.metrics, self.samples, self.failures

    def read_histories(self) -> dict[str, bytes]:
        """Return the contents of the histories that exist, by file name."""
        return {file.name: file.read_bytes() for file in self.histories() if file.is_file()}

    def restore_histories(self, files: Mapping[str, bytes | None]) -> None:
        """Replace these files by the given contents; None removes a file."""
        for name, data in files.items():
            if data is None:
                (self.path / name).unlink(missing_ok=True)
            else:
                replace_bytes(self.path / name, data)

    def remove_histories(self) -> None:
        """Remove the JSON lines files of an earlier training run."""
        for file in self.histories():
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

    def write_config(self, config: RunConfig, sources: list[str]) -> None:
        """Write config.json."""
        record = {"format": FORMAT, "recurra": __version__, "sources": sources}
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

    def read_sources(self) -> list[str]:
        """Return the sources of the training text, as specified by the user.

        Raises:
            RunError: as for `read_config`.
        """
        sources = self._read_record().get("sources", [])
        if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
            raise RunError(
                f"{self.config}: sources is {shortened(sources)}; it must be a list of strings"
            )
        return sources

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
            for name, may_be_none in METRICS.items():
                value = record.get(name)
                is_null = value is None and may_be_none and name in record
                if not (isinstance(value, (int, float)) or is_null):
                    raise RunError(f"{self.metrics} is damaged: {name} is {str(value)[:80]!r}")
        return records

    def best_metrics(self) -> dict[str, Any]:
        """Return the record of metrics.jsonl that belongs to the weights in model.safetensors.

        This is the record with the lowest validation loss, or the last record if there is no
        validation part. Before the first evaluation the result is empty.

        Raises:
            RunError: as for `read_metrics`.
        """
        records = self.read_metrics()
        validated = [r for r in records if r["val_nats"] is not None]
        if validated:
            return min(validated, key=lambda record: float(record["val_nats"]))
        return records[-1] if records else {}


def _aside(place: Path) -> Path:
    """Return the temporary path of an older run while a new run replaces it."""
    return place.with_name(f".{place.name}.old{UNFINISHED}")


def _remove_if_abandoned(staging: Path) -> None:
    """Remove a temporary directory of `prepared`, unless another process still uses it."""
    if (staging / LOCK).is_file():
        with suppress(RunError), RunDirectory(staging).locked():
            shutil.rmtree(staging)
