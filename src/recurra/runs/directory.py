"""A run directory: its files, its lock and its creation.

    config.json          everything needed to rebuild the model and repeat the training
    vocabulary.json      the tokens
    tokens.bin, .json    the text as ids, and where it came from
    model.safetensors    the best weights by validation loss
    metrics.jsonl        one line per report
    samples.jsonl        what the model wrote at each report
    failures.jsonl       the batches on which the loss became NaN or infinite, if any
    checkpoints/         the latest checkpoints; see checkpoint_store.py
    loss.svg             with --plot
    .lock                held by the process that trains
    .job                 which job of torchrun's made the run, if one did that may restart

Knows where things lie and how they are written so that a reader never sees half a file; what is
in them is defined in `checkpoint.py`, `weights.py` and the reporter.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
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
    make_folders,
    read_json,
    read_lines,
    remove_empty,
    remove_unfinished,
    replace_bytes,
    write_bytes,
    write_json,
)
from recurra.runs.checkpoint_store import is_name
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
"""What every line of metrics.jsonl has that others rely on, and whether it may be null."""
TOKEN_FILES = ("tokens.bin", "tokens.json", "vocabulary.json")


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.vocabulary = self.path / "vocabulary.json"
        self.model = self.path / "model.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.failures = self.path / "failures.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.curve = self.path / "loss.svg"
        self._lock = FileLock(self.path / LOCK)

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        try:
            return {"format", "text", "model", "training"} <= read_json(self.config).keys()
        except RunError:
            return False

    def claim(self, job: str) -> None:
        """Write down which job of torchrun's makes this run."""
        write_bytes(self.path / JOB, job.encode())

    def is_made_by(self, job: str) -> bool:
        """Whether that job made it."""
        file = self.path / JOB
        return file.is_file() and file.read_bytes() == job.encode()

    @property
    def has_copy_of_model(self) -> bool:
        """Whether a checkpoint keeps the best weights."""
        return any(self.checkpoints.glob("step-*/best.safetensors"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory; the lock of a process that died is void.

        Raises:
            RunError: another process trains here, or there is no such folder.
        """
        if not self.path.is_dir():
            raise RunError(f"{self.path} holds no run (there is no such folder)")
        try:
            # `prepared` hands a new run over locked.
            if not self._lock.is_locked:
                self._lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{self.path} is in use: another process trains in it") from None
        try:
            yield
        finally:
            self.unlock()

    def unlock(self) -> None:
        """Let others train here."""
        self._lock.release()

    def remove_unfinished(self) -> None:
        """Remove what processes that were killed left half-written, here and beside this folder."""
        place = self.path.resolve()
        if (aside := _aside(place)).is_dir():
            # Killed while --force put a new run in the old one's place.
            if place.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(place)
        # Eight letters of mkdtemp's, and no run whose name begins like this one's.
        name = re.compile(rf"\.{re.escape(place.name)}-\w{{8}}{re.escape(UNFINISHED)}")
        if place.parent.is_dir():
            for staging in place.parent.iterdir():
                if name.fullmatch(staging.name):
                    _remove_if_abandoned(staging)
        if place.is_dir():
            remove_unfinished(place)

    @contextmanager
    def prepared(self, *, force: bool) -> Iterator[RunDirectory]:
        """Yield a folder beside this one to prepare a new run in; it takes this one's place at the
        end of the block, locked. When the block fails it is removed, and what was here is as it
        was.

        With `force` an older run is replaced; its token file is offered to the new one, which uses
        it again if the text and its options are the same.

        Raises:
            RunError: the folder exists and is not empty, and either `force` is off or what lies
                there is not a run, or another process trains in it.
        """
        place = self.path.resolve()
        self.remove_unfinished()
        self._check_free(force=force)
        made = make_folders(place.parent)
        prefix = f".{place.name}-"
        staging = RunDirectory(tempfile.mkdtemp(prefix=prefix, suffix=UNFINISHED, dir=place.parent))
        try:
            with staging.locked(), self._kept_free():
                for name in TOKEN_FILES:
                    if (place / name).is_file():
                        _link_or_copy(place / name, staging.path / name)
                yield staging
                # Another process may have created a run while the text was read.
                self._check_free(force=force)
                # mkdtemp makes folders that only their owner may enter; a run is one like others.
                staging.path.chmod(0o777 & ~_umask())
                self._take_place(staging, place)
        finally:
            shutil.rmtree(staging.path, ignore_errors=True)
            remove_empty(made)

    @contextmanager
    def _kept_free(self) -> Iterator[None]:
        """Hold the lock of the older run that a new one replaces."""
        if not self.is_run:
            yield
            return
        with RunDirectory(self.path).locked():
            yield

    def _take_place(self, staging: RunDirectory, place: Path) -> None:
        """Move a folder to its place; what was there goes only when the new one is in."""
        if os.name == "nt":
            # Windows moves no folder that has an open file in it.
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
            # The lock has moved with its file.
            self._lock = staging._lock
        self._lock.acquire(blocking=False)

    def check_removable(self) -> None:
        """Check that the directory has only run files and is not locked by another process.

        Raises:
            RunError: it has other files, or another process trains in it.
        """
        self._check_free(force=True)
        with self.locked():
            pass

    def _check_free(self, *, force: bool) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; --out needs a folder")
        if self.path.resolve() == Path.cwd():
            raise RunError(f"{self.path} is the folder you are in; choose another --out")
        if not any(self.path.iterdir()):
            return
        if not self.is_run:
            raise RunError(f"{self.path} is not a run of recurra; choose another --out")
        if not force:
            raise RunError(
                f"{self.path} exists already; choose another --out, or replace it by --force"
                " (from Python: force=True)"
            )
        there = (p for p in self.path.rglob("*") if not p.is_dir())
        foreign = sorted(str(p.relative_to(self.path)) for p in there if not self._is_own(p))
        if foreign:
            raise RunError(
                f"{self.path} holds {foreign[0]}, which no run wrote; --force will not remove it"
            )

    def _is_own(self, file: Path) -> bool:
        named = {self.config, self.model, *self.histories(), self.curve}
        named |= {self.path / name for name in TOKEN_FILES}
        if file.name.startswith("."):
            return file.name in (LOCK, JOB) or file.name.endswith(UNFINISHED)
        is_checkpoint = file.parent.parent == self.checkpoints and is_name(file.parent.name)
        return file in named or is_checkpoint or file.parent.name.endswith(UNFINISHED)

    def histories(self) -> tuple[Path, ...]:
        """The files that grow by a line at a time."""
        return self.metrics, self.samples, self.failures

    def remove_histories(self) -> None:
        """Remove the lines of an earlier training, so that a new one starts without any."""
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

    def write_config(self, config: RunConfig, sources: list[str]) -> None:
        """Write config.json."""
        record = {"format": FORMAT, "recurra": __version__, "sources": sources}
        write_json(self.config, record | config.to_dict())

    def read_config(self) -> RunConfig:
        """Read config.json.

        Raises:
            RunError: there is no run here, or the file is not what it should be.
        """
        record = self._read_record()
        values = {k: v for k, v in record.items() if k in ("text", "model", "training")}
        try:
            return RunConfig.from_dict(values)
        except ConfigError as error:
            raise RunError(f"{self.config}: {error}") from error

    def read_sources(self) -> list[str]:
        """What the run was trained on, as it was named on the command line."""
        sources = self._read_record().get("sources", [])
        if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
            raise RunError(f"{self.config}: sources must be a list of names")
        return sources

    def _read_record(self) -> dict[str, Any]:
        if not self.config.is_file():
            raise RunError(f"{self.path} holds no run (there is no {self.config.name} in it)")
        record = read_json(self.config)
        if record.get("format") != FORMAT:
            raise RunError(
                f"{self.config}: format {shortened(record.get('format'))} is not one this version"
                f" ({__version__}) reads; it reads {FORMAT}"
            )
        return record

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; empty when nothing was reported yet.

        Raises:
            RunError: a line is not what it should be.
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
        """The line of the weights in model.safetensors: the lowest validation loss, or the last
        line where nothing was validated; empty when nothing was reported yet."""
        records = self.read_metrics()
        validated = [r for r in records if r["val_nats"] is not None]
        if validated:
            return min(validated, key=lambda record: float(record["val_nats"]))
        return records[-1] if records else {}


def _aside(place: Path) -> Path:
    """Where an older run waits while a new one takes its place."""
    return place.with_name(f".{place.name}.old{UNFINISHED}")


def _remove_if_abandoned(staging: Path) -> None:
    """Remove a folder that a run was prepared in, unless its process is still at it."""
    if (staging / LOCK).is_file():
        with suppress(RunError), RunDirectory(staging).locked():
            shutil.rmtree(staging)


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _umask() -> int:
    """The process's file mode mask; reading it means setting it for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
