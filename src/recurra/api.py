"""Public functions: `train()` and `load()` return a `LanguageModel`.

The module connects the lower-level packages and contains no computation.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from recurra.config import RunOptions
from recurra.data.token_file import load_vocabulary
from recurra.errors import RunError, TrainingInterrupted
from recurra.inference.language_model import LanguageModel, Source, as_list
from recurra.report.notebook import default_progress
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runs.weights import load_model
from recurra.runtime.clock import Clock
from recurra.runtime.devices import choose_device
from recurra.runtime.interactive import is_interactive
from recurra.training.run import start_run

__all__ = ["LanguageModel", "load", "train"]


def train(
    source: Source | Sequence[Source] = (),
    *,
    out: Source | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> LanguageModel:
    """Train a language model on a text.

    Args:
        source: a file, a directory, a corpus name, or a sequence of these. By default, the bundled
            English story.
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
    """
    clock = Clock()
    progress = progress or default_progress()
    given = RunOptions.of(**options)
    try:
        return start_run(as_list(source), given, out, progress, clock, force=force)
    except TrainingInterrupted as stop:
        # A script must end at Ctrl-C, but an interactive user expects the model.
        if stop.run is None or stop.signum != signal.SIGINT or not is_interactive():
            raise
        progress.message(f"interrupted; {stop}; train() returns the model so far")
        return load(stop.run, given.config.training.device)


def load(path: Source, device: str = "cpu") -> LanguageModel:
    """Load a model from a run directory.

    Args:
        path: the run directory.
        device: auto, cpu, cuda, cuda:N or mps.

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
    directory = RunDirectory(path)
    config = directory.read_config()
    vocabulary = load_vocabulary(directory.path)
    if vocabulary.kind != config.text.tokens:
        raise RunError(
            f"{directory.vocabulary} has {vocabulary.kind} tokens, but {directory.config} specifies"
            f" {config.text.tokens}"
        )
    if len(vocabulary) != config.model.vocab_size:
        raise RunError(
            f"{directory.vocabulary} has {len(vocabulary)} tokens, but {directory.config} specifies"
            f" {config.model.vocab_size}"
        )
    if not directory.model.exists():
        raise RunError(
            f"{directory.model} is missing because the run stopped before its first evaluation;"
            f" resume it with recurra train --resume {directory.path}"
        )
    try:
        model = load_model(directory.model, config.model)
    except RunError as error:
        raise RunError(f"{error}{_remedy(directory)}") from error
    return LanguageModel(model.to(choose_device(device)).eval(), vocabulary, config, directory.path)


def _remedy(directory: RunDirectory) -> str:
    """Return how to restore damaged weights, or an empty string if no checkpoint has a copy."""
    if not directory.has_copy_of_model:
        return ""
    return f"; recurra train --resume {directory.path} restores them from the last checkpoint"
