"""`recurra train`: train a model on a text, or resume a run."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli import main
from recurra.cli.parsing import decode_argument, parse
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

    base: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Run directory of a model to fine-tune on this text: training starts from its weights, with
    its settings and half its learning rate. See --new-tokens."""

    config: Path | None = None
    """File with defaults for the settings and the sources: the config.json of a run, or a TOML file
    with the same fields. Options on the command line take precedence."""

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
    if command.resume is not None:
        _refuse_options_of_new_runs(command)
    from recurra.report.progress import describe
    from recurra.runs.directory import RunDirectory
    from recurra.runtime.clock import Clock
    from recurra.runtime.distributed import started_rank
    from recurra.training.creation import create_request
    from recurra.training.run import resume_run, start_run

    command_line = shlex.join(["recurra", "train", *map(decode_argument, arguments)])
    progress, clock = _progress(command), Clock(main.STARTED)
    if command.resume is not None:
        # Not checked against the defaults: they are compared with the settings of the run.
        lm = resume_run(
            command.resume,
            progress,
            clock,
            options=RunOptions(command.given()),
            sources=command.sources,
            command=command_line,
        )
    else:
        request = create_request(
            command.sources, command.to_options(), command.config, command.base
        )
        request = replace(request, command=command_line, force=command.force)
        lm = start_run(request, command.out, progress, clock)
    if started_rank() > 0:
        return 0  # Rank 0 prints the result.
    assert lm.path is not None
    best = RunDirectory(lm.path).best_metrics()
    if command.json:
        print(json_line({"run": str(lm.path), **best}))
    progress.message(f"best     {describe(best)}")
    progress.message(f"saved in {lm.path}; try: recurra generate {lm.path} --prompt TEXT")
    return 0


def _refuse_options_of_new_runs(command: Train) -> None:
    given = {
        "--out": command.out is not None,
        "--force": command.force,
        "--from": command.base is not None,
        "--config": command.config is not None,
    }
    if found := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(f"--resume cannot be combined with {' or '.join(found)}; remove it")


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
