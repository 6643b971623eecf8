"""`recurra train`: train a model on a text, or resume a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli import main
from recurra.cli.parsing import parse
from recurra.cli.settings import Settings
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.report.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a model on a text, in a run directory that every other command reads.

    With a budget in minutes (2 when none is given) everything that is not given is chosen: size,
    batch, rates, dropout and precision follow from the text, the minutes and a short trial of this
    machine. With --steps or --epochs the defaults below hold.

    During training it reports the validation loss and generated samples. Ctrl-C saves a checkpoint;
    --resume continues from it. Several processes train one model:
    torchrun --nproc-per-node N -m recurra train ...
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, - for standard input, or corpus names (recurra data list). Without any, the
    bundled English story."""

    out: Path | None = None
    """The run's folder; by default a new one under runs/."""

    resume: Path | None = None
    """Resume the interrupted run in this directory. It keeps its text and its settings: others
    are refused, but for --threads, --device, --plot, --checkpoint-every and --on-nan."""

    force: bool = False
    """Replace an older run in the folder."""

    json: bool = False
    """Print every report as a line of JSON on stdout; the last line is the result."""

    quiet: bool = False
    """Show no progress."""


def run(arguments: Sequence[str]) -> int:
    """Train or resume."""
    command = parse(Train, "train", arguments)
    if command.resume is not None and (command.out is not None or command.force):
        raise ConfigError("--resume continues in the directory of the run; drop --out and --force")
    options = command.to_options()
    from recurra.report.progress import describe
    from recurra.runs.directory import RunDirectory
    from recurra.runtime.clock import Clock
    from recurra.runtime.distributed import started_rank
    from recurra.training.run import resume_run, start_run

    progress, clock = _progress(command), Clock(main.STARTED)
    if command.resume is not None:
        lm = resume_run(command.resume, progress, clock, options=options, sources=command.sources)
    else:
        lm = start_run(command.sources, options, command.out, progress, clock, force=command.force)
    if started_rank() > 0:
        return 0  # The first process prints the result.
    assert lm.path is not None
    best = RunDirectory(lm.path).best_metrics()
    if command.json:
        print(json.dumps({"run": str(lm.path), **best}, ensure_ascii=False))
    progress.message(f"best     {describe(best)}")
    progress.message(f"saved in {lm.path}; try: recurra generate {lm.path} --prompt TEXT")
    return 0


def _progress(command: Train) -> Progress:
    from recurra.report.progress import ConsoleProgress, Progress, Several

    class JsonLines(Progress):
        """Prints every report as a line of JSON on stdout."""

        def report(self, record: dict[str, Any]) -> None:
            # A closed stdout must not abort training.
            with contextlib.suppress(OSError):
                print(json.dumps(record, ensure_ascii=False), flush=True)

    shown = Progress() if command.quiet else ConsoleProgress()
    return Several(shown, JsonLines()) if command.json else shown
