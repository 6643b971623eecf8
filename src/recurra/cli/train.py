"""`recurra train`: from a text to a model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli import main
from recurra.cli.parsing import parse
from recurra.config import ModelConfig, RunConfig, TextConfig, TrainingConfig
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.training.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Train:
    """Learn a model from a text; leave it in a folder that every other verb reads.

    While it learns it reports the validation loss and what it would write. Ctrl-C saves; --resume
    goes on.
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, - for standard input, or corpus names (recurra data list). Without any, the
    bundled English story."""

    out: Path | None = None
    """The run's folder; by default a new one under runs/."""

    resume: Path | None = None
    """Go on with the interrupted run in this folder; of the other options only --json and --quiet
    go with it."""

    force: bool = False
    """Replace an older run in the folder."""

    json: bool = False
    """Print every report as a line of JSON on stdout; the last line is the result."""

    quiet: bool = False
    """Show no progress."""

    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def run(arguments: Sequence[str]) -> int:
    """Train or resume."""
    command = parse(Train, "train", arguments)
    _check(command)
    from recurra import api
    from recurra.training.budget import Clock
    from recurra.training.progress import describe
    from recurra.training.run_folder import RunFolder

    progress, clock = _progress(command), Clock(main.STARTED)
    if command.resume is not None:
        lm = api.resume_run(command.resume, progress, clock)
    else:
        config = RunConfig(text=command.text, model=command.model, training=command.training)
        folder = api.choose_folder(command.out, command.sources, config)
        lm = api.start_run(command.sources, config, folder, progress, clock, force=command.force)
    assert lm.path is not None
    best = RunFolder(lm.path).best_metrics()
    if command.json:
        print(json.dumps({"run": str(lm.path), **best}, ensure_ascii=False))
    progress.message(f"best     {describe(best)}")
    progress.message(f"saved in {lm.path}; try: recurra generate {lm.path} --prompt TEXT")
    return 0


def _check(command: Train) -> None:
    if command.resume is None:
        return
    given = dataclasses.replace(command, resume=None, json=False, quiet=False)
    if given != Train():
        raise ConfigError("--resume goes on with the run's own text and settings; drop the others")


def _progress(command: Train) -> Progress:
    from recurra.training.progress import ConsoleProgress, Progress, Several

    class JsonLines(Progress):
        """Prints every report as a line of JSON on stdout."""

        def report(self, record: dict[str, Any]) -> None:
            # A reader that has had enough shall not end the training.
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(record, ensure_ascii=False), flush=True)

    shown = Progress() if command.quiet else ConsoleProgress()
    return Several(shown, JsonLines()) if command.json else shown
