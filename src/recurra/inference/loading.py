"""Load a model from a run directory, and check that its files belong together."""

from __future__ import annotations

from pathlib import Path

from recurra.data.token_file import load_vocabulary
from recurra.errors import RunError
from recurra.inference.language_model import LanguageModel
from recurra.runs.directory import RunDirectory
from recurra.runs.weights import load_model
from recurra.runtime.devices import choose_device


def load_language_model(path: str | Path, device: str) -> LanguageModel:
    """Return the model of a run in evaluation mode: `recurra.load`.

    The device `auto` is the CPU. A single stream of tokens is read or generated one small step
    after another, and the CPU kernels take less time for a step than a GPU takes to launch the
    operations.

    Raises:
        RunError: the directory is not a run, or its files are damaged or inconsistent.
        ConfigError: the device is not available.
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
    chosen = choose_device("cpu" if device == "auto" else device)
    return LanguageModel(model.to(chosen).eval(), vocabulary, config, directory.path)


def _remedy(directory: RunDirectory) -> str:
    """Return how to restore damaged weights, or an empty string if no checkpoint has a copy."""
    if not directory.has_copy_of_model:
        return ""
    return f"; recurra train --resume {directory.path} restores them from the last checkpoint"
