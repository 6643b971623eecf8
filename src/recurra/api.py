"""Public functions: `train()` and `load()` return a `LanguageModel`.

This module connects the lower-level packages and contains no computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recurra.config import RunOptions
from recurra.data.token_file import load_vocabulary
from recurra.errors import RunError
from recurra.inference.language_model import LanguageModel, Source, as_list
from recurra.report.progress import ConsoleProgress, Progress
from recurra.runs.directory import RunDirectory
from recurra.runs.weights import load_model
from recurra.runtime.clock import Clock
from recurra.runtime.devices import choose_device
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
    """Learn a language model from a text.

    Args:
        source: a file, a folder, a corpus name, or several; none is the bundled English story.
        out: the run's folder; by default a new one under `runs/`.
        force: replace an older run in that folder.
        progress: receives training events. Defaults to `ConsoleProgress`, which writes to stderr.
        options: fields of `TextConfig`, `ModelConfig` and `TrainingConfig`; None is as good as not
            given. With a budget in minutes (2 without any), `training/recipe.py` chooses those that
            are not given.

    Returns:
        The model with the weights of the best validation loss.

    Raises:
        ConfigError, SourceError, CorpusError, RunError: see recurra.errors; nothing is written.
        DivergenceError: training failed; the last good checkpoint, the record of the batch and
            the best weights so far are in the folder.
        TrainingInterrupted: a signal came; everything is saved.
    """
    clock = Clock()
    shown = progress or ConsoleProgress()
    return start_run(as_list(source), RunOptions.of(**options), out, shown, clock, force=force)


def load(path: Source, device: str = "cpu") -> LanguageModel:
    """Read a model from a run's folder.

    Raises:
        RunError: the folder holds no run, or its files are damaged or do not fit together.
    """
    folder = RunDirectory(path)
    config = folder.read_config()
    vocabulary = load_vocabulary(folder.path)
    if vocabulary.kind != config.text.tokens:
        raise RunError(
            f"{folder.vocabulary} has {vocabulary.kind} tokens, but {folder.config} says"
            f" {config.text.tokens}"
        )
    if len(vocabulary) != config.model.vocab_size:
        raise RunError(
            f"{folder.vocabulary} has {len(vocabulary)} tokens, but {folder.config} says"
            f" {config.model.vocab_size}"
        )
    if not folder.model.exists():
        raise RunError(
            f"{folder.model} is missing: the run was stopped before it had learned anything;"
            f" continue with recurra train --resume {folder.path}"
        )
    try:
        model = load_model(folder.model, config.model)
    except RunError as error:
        raise RunError(f"{error}{_remedy(folder)}") from error
    return LanguageModel(model.to(choose_device(device)).eval(), vocabulary, config, folder.path)


def _remedy(folder: RunDirectory) -> str:
    """What to do about damaged weights: a checkpoint has a copy of them."""
    if not folder.has_copy_of_model:
        return ""
    return f"; recurra train --resume {folder.path} puts back those of its last checkpoint"
