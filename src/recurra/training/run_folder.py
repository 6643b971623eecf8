"""A run on disk: a folder readable by eye, with no pickle in it.

    config.json          everything needed to rebuild the model and repeat the training
    vocabulary.json      the tokens
    tokens.bin, .json    the text as ids, and where it came from
    model.safetensors    the best weights by validation loss
    metrics.jsonl        one line per report
    samples.jsonl        what the model wrote at each report
    checkpoints/         the last moment of the training, to go on from
    loss.svg             with --plot

Knows where things lie and how they are written so that a reader never sees half a file; what is
in them is the business of `checkpoint.py` and the trainer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import recurra
from recurra.config import RunConfig
from recurra.errors import ConfigError, RunError
from recurra.files import read_json, read_lines, replaced, write_json

FORMAT = 1
TOKEN_FILES = ("tokens.bin", "tokens.json", "vocabulary.json")


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.vocabulary = self.path / "vocabulary.json"
        self.model = self.path / "model.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.curve = self.path / "loss.svg"

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        try:
            return {"format", "text", "model", "training"} <= read_json(self.config).keys()
        except RunError:
            return False

    @contextmanager
    def prepared(self, *, force: bool) -> Iterator[RunFolder]:
        """Yield a folder beside this one to prepare a new run in; it takes this one's place at the
        end of the block. When the block fails it is removed, and what was here is as it was.

        With `force` an older run is replaced; its token file is offered to the new one, which uses
        it again if the text and its options are the same.

        Raises:
            RunError: the folder exists and is not empty, and either `force` is off or what lies
                there is not a run.
        """
        place = self.path.resolve()
        self._check_free(force=force)
        made = _make_folders(place.parent)
        staging = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            for name in TOKEN_FILES:
                if (place / name).is_file():
                    _link_or_copy(place / name, staging / name)
            yield RunFolder(staging)
            # Somebody may have come while the text was read.
            self._check_free(force=force)
            # mkdtemp makes folders that only their owner may enter; a run is a folder like others.
            staging.chmod(0o777 & ~_umask())
            _take_place(staging, place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            for folder in made:
                with suppress(OSError):  # not empty: the run, or somebody else's file, is in it
                    folder.rmdir()

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
                f"{self.path} exists already; choose another --out, or --force to replace it"
            )
        there = (p for p in self.path.rglob("*") if not p.is_dir() and not p.name.startswith("."))
        foreign = sorted(str(p.relative_to(self.path)) for p in there if p not in self._files())
        if foreign:
            raise RunError(
                f"{self.path} holds {foreign[0]}, which no run wrote; --force will not remove it"
            )

    def _files(self) -> set[Path]:
        named = {self.config, self.model, self.metrics, self.samples, self.last, self.curve}
        return named | {self.path / name for name in TOKEN_FILES}

    def write_config(self, config: RunConfig, sources: list[str]) -> None:
        """Write config.json."""
        record = {"format": FORMAT, "recurra": recurra.__version__, "sources": sources}
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
                f"{self.config}: format {record.get('format')!r} is not one this version"
                f" ({recurra.__version__}) reads; it reads {FORMAT}"
            )
        return record

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; empty when nothing was reported yet."""
        return list(read_lines(self.metrics))

    def best_metrics(self) -> dict[str, Any]:
        """The line of the weights in model.safetensors: the lowest validation loss, or the last
        line where nothing was validated; empty when nothing was reported yet."""
        records = self.read_metrics()
        validated = [r for r in records if r["val_nats"] is not None]
        if validated:
            return min(validated, key=lambda record: float(record["val_nats"]))
        return records[-1] if records else {}

    def cut_after(self, step: int) -> None:
        """Drop the lines of metrics and samples that were written after `step`."""
        for file in (self.metrics, self.samples):
            if file.is_file():
                kept = [line for line in read_lines(file) if line["step"] <= step]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
                with replaced(file) as temporary:
                    temporary.write_text(text, encoding="utf-8")


def _make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were missing, the lowest first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _take_place(staging: Path, place: Path) -> None:
    """Move a folder to its place; what was there goes only when the new one is in."""
    if not place.exists():
        staging.rename(place)
        return
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-old-", dir=place.parent) as aside:
        old = place.rename(Path(aside, place.name))
        try:
            staging.rename(place)
        except OSError:
            old.rename(place)
            raise


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
