"""Public functions: `train()`, `resume()` and `load()` return a `LanguageModel`.

The module connects the lower-level packages and contains no computation.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from recurra.config import RunOptions
from recurra.config.checks import require
from recurra.errors import TrainingInterrupted
from recurra.inference.language_model import LanguageModel, Source, as_list
from recurra.inference.loading import load_language_model
from recurra.report.notebook import default_progress
from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.runtime.interactive import is_interactive
from recurra.text.memory import MemoryText, TextInMemory
from recurra.text.sources import TextSource
from recurra.training.creation import create_request
from recurra.training.run import resume_run, start_run

__all__ = ["LanguageModel", "load", "resume", "train"]

MAX_PATH_CHARS = 1024
"""Length from which a text in memory is not checked for being the path of a file."""


def train(
    source: Source | Sequence[Source] = (),
    *,
    text: TextInMemory | None = None,
    base: Source | LanguageModel | None = None,
    config: Source | None = None,
    out: Source | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> LanguageModel:
    """Train a language model on a text.

    Args:
        source: a file, a directory, a corpus name, or a sequence of these. By default, the bundled
            English story.
        text: instead of `source`, a text in memory: a string, bytes, an open file, or an iterable
            of strings or of bytes, which are joined by `separator`.
        base: model to fine-tune, or its run directory; see `training/fine_tuning.py`.
        config: file with defaults for the options: the config.json of a run, or TOML with the same
            fields. `source` also defaults to the sources of that file.
        out: run directory to create; by default, a new directory in `runs/`.
        force: replace an existing run in that directory.
        progress: receives training events. Defaults to `ConsoleProgress`, which writes to stderr,
            or in a Jupyter notebook to `NotebookProgress`, which updates one display.
        options: fields of `TextConfig`, `ModelConfig` and `TrainingConfig`; None means unspecified.
            With a budget in minutes (2 if no budget is given), `training/recipe.py` chooses the
            unspecified options. Otherwise, they have their defaults.

    Returns:
        The model with the weights of the lowest validation loss. If Ctrl-C, or the stop button of
        a notebook, interrupts training in an interactive session, this is the model so far.

    Raises:
        ConfigError, SourceError, CorpusError, RunError: see `recurra.errors`; nothing is written.
        DivergenceError: training failed. The run directory contains the last good checkpoint, a
            record of the failed batch and the best weights.
        TrainingInterrupted: a signal was received; a checkpoint was saved. In an interactive
            session, Ctrl-C raises it only before the first checkpoint or in the middle of a step.

    Examples:
        >>> import recurra
        >>> lm = recurra.train(cell="gru", hidden_size=8, steps=5, out="runs/story")
        >>> lm.config.model.cell
        'gru'
        >>> lm.path.name
        'story'
        >>> cats = recurra.train(text="The cat sat on the mat. " * 99, base="runs/story", steps=5)
        >>> cats.config.model.hidden_size
        8
    """
    clock = Clock()
    if isinstance(base, LanguageModel):
        require(base.path is not None, "base has no run directory; save it first")
        base = base.path
    sources: list[TextSource] = [*as_list(source)]
    if text is not None:
        require(not sources, "source and text are both given; remove one of the two")
        is_path = isinstance(text, str) and len(text) < MAX_PATH_CHARS and os.path.isfile(text)
        require(not is_path, f"text is {text!r}, which is a file; pass it as source instead")
        sources = [MemoryText(text)]
    request = replace(create_request(sources, RunOptions.of(**options), config, base), force=force)
    shown = progress or default_progress()
    try:
        return start_run(request, out, shown, clock)
    except TrainingInterrupted as stop:
        return _model_so_far(stop, request.options, shown)


def resume(
    path: Source,
    source: Source | Sequence[Source] = (),
    *,
    progress: Progress | None = None,
    **options: Any,
) -> LanguageModel:
    """Resume an interrupted run exactly, or train a run longer.

    Args:
        path: the run directory.
        source: the text, which must be that of the run; by default it is not compared.
        progress: receives training events, as for `train`.
        options: a greater budget (minutes, steps or epochs), which counts from the start of the
            run; threads, device, plot, checkpoint_every and on_nan. Others must be equal to those
            of the run.

    Returns:
        The model with the weights of the lowest validation loss.

    Raises:
        ConfigError: an option differs from the run, or the budget is spent already.
        RunError: the directory contains no run, its checkpoints are damaged, the text differs, or
            another process is training in it.
        DivergenceError, TrainingInterrupted: as for `train`. In an interactive session, an
            interrupted training returns the model so far.

    Examples:
        >>> import recurra
        >>> _ = recurra.train(hidden_size=8, steps=5, out="runs/story")
        >>> lm = recurra.resume("runs/story", steps=10)
        >>> lm.config.training.steps
        10
    """
    clock = Clock()
    shown = progress or default_progress()
    given = RunOptions.of(**options)
    try:
        return resume_run(path, shown, clock, options=given, sources=as_list(source))
    except TrainingInterrupted as stop:
        return _model_so_far(stop, given, shown)


def _model_so_far(
    stop: TrainingInterrupted, options: RunOptions, progress: Progress
) -> LanguageModel:
    """Return the model of an interrupted training in an interactive session.

    Raises:
        TrainingInterrupted: the session is not interactive (a script must end at Ctrl-C), the
            signal was not that of Ctrl-C, or there is no model.
    """
    if stop.run is None or stop.signum != signal.SIGINT or not is_interactive():
        raise stop
    progress.message(f"interrupted; {stop}; the result is the model so far")
    return load(stop.run, options.config.training.device)


def load(path: Source, device: str = "cpu") -> LanguageModel:
    """Load a model from a run directory.

    Args:
        path: the run directory.
        device: auto, cpu, cuda, cuda:N or mps. `auto` is the CPU, which is faster for a single
            stream of tokens.

    Returns:
        The model in evaluation mode.

    Raises:
        ConfigError: the device is invalid or unavailable.
        RunError: the directory is not a run, or its files are damaged or inconsistent.

    Examples:
        >>> import recurra
        >>> _ = recurra.train(hidden_size=8, steps=5, out="runs/story")
        >>> lm = recurra.load("runs/story")
        >>> lm.config.model.hidden_size
        8
    """
    return load_language_model(path, device)
