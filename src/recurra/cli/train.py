"""`recurra train`: train a model on a text, or resume a run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli import main
from recurra.cli.parsing import parse
from recurra.cli.settings import Settings
from recurra.cli.showing import json_line
from recurra.config import RunOptions
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.report.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a model on a text and write it to a run directory.

    With a time budget (--minutes, 2 by default), unspecified settings such as the model size, batch
    size, learning rate, dropout and precision are chosen from the text, the budget and a short
    speed measurement. With --steps or --epochs, unspecified settings have the defaults below.

    The validation loss and generated samples are printed during training. Ctrl-C saves a
    checkpoint; --resume continues from it. To train one model with several processes, use
    torchrun --nproc-per-node N -m recurra train ...
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, directories, corpus names (see recurra data list), or - for standard input. By
    default, the bundled English story."""

    out: Path | None = None
    """Run directory to create; by default, a new directory in runs/."""

    resume: Path | None = None
    """Run directory of a run to resume. With a greater budget (--minutes, --steps or --epochs,
    counted from the start of the run), a finished run trains longer. Its text and other settings
    cannot be changed, except --threads, --device, --plot, --checkpoint-every and --on-nan."""

    force: bool = False
    """Replace an existing run in the directory of --out."""

    json: bool = False
    """Print the metrics of each evaluation as a line of JSON on stdout. The last line is the
    result."""

    quiet: bool = False
    """Do not print progress."""


def run(arguments: Sequence[str]) -> int:
    """Train a model or resume a run, and return the exit code."""
    command = parse(Train, "train", arguments)
    if command.resume is not None and (command.out is not None or command.force):
        raise ConfigError("--resume cannot be combined with --out or --force; remove them")
    from recurra.report.progress import describe
    from recurra.runs.directory import RunDirectory
    from recurra.runtime.clock import Clock
    from recurra.runtime.distributed import started_rank
    from recurra.training.run import resume_run, start_run

    progress, clock = _progress(command), Clock(main.STARTED)
    if command.resume is not None:
        # Not checked against the defaults: they are compared with the settings of the run.
        options = RunOptions(command.given())
        lm = resume_run(command.resume, progress, clock, options=options, sources=command.sources)
    else:
        lm = start_run(
            command.sources, command.to_options(), command.out, progress, clock, force=command.force
        )
    if started_rank() > 0:
        return 0  # Rank 0 prints the result.
    assert lm.path is not None
    best = RunDirectory(lm.path).best_metrics()
    if command.json:
        print(json_line({"run": str(lm.path), **best}))
    progress.message(f"best     {describe(best)}")
    progress.message(f"saved in {lm.path}; try: recurra generate {lm.path} --prompt TEXT")
    return 0


def _progress(command: Train) -> Progress:
    from recurra.report.progress import ConsoleProgress, Progress, Several

    class JsonLines(Progress):
        """Progress that prints the metrics of each evaluation as a line of JSON on stdout."""

        def report(self, record: dict[str, Any]) -> None:
            # A closed stdout must not abort training.
            with contextlib.suppress(OSError):
                print(json_line(record), flush=True)

    shown = Progress() if command.quiet else ConsoleProgress()
    return Several(shown, JsonLines()) if command.json else shown
