"""`train()` and `load()`: from a text, or from a run's folder, to a `LanguageModel`.

This module only joins the rooms below it; nothing is computed here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recurra.config import RunConfig, TrainingConfig
from recurra.devices import choose_device
from recurra.errors import (
    ConfigError,
    DivergenceError,
    RunError,
    SourceError,
    UnknownTokenError,
)
from recurra.language_model import LanguageModel, Source, as_list, predicted_sizes
from recurra.model import RecurrentLM
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.text.corpus import prepare_text
from recurra.text.token_file import (
    TokenFile,
    build_token_file,
    load_token_file,
    load_vocabulary,
)
from recurra.text.vocabulary import Vocabulary
from recurra.training.batches import BatchStream
from recurra.training.budget import Clock
from recurra.training.checkpoint import load_weights
from recurra.training.curve import require_matplotlib, write_svg
from recurra.training.progress import ConsoleProgress, Progress
from recurra.training.run_folder import RunFolder
from recurra.training.trainer import Trainer

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
        progress: who is told; by default a person, on stderr.
        options: fields of `TextConfig`, `ModelConfig` and `TrainingConfig`.

    Returns:
        The model with the weights of the best validation loss.

    Raises:
        ConfigError, SourceError, CorpusError, RunError: see recurra.errors; nothing is written.
        DivergenceError: training failed; the best weights so far are in the folder.
    """
    clock = Clock()
    config = RunConfig.from_options(**options)
    sources = as_list(source)
    folder = choose_folder(out, sources, config)
    return start_run(sources, config, folder, progress or ConsoleProgress(), clock, force=force)


def choose_folder(out: Source | None, sources: Sequence[Source], config: RunConfig) -> RunFolder:
    """The folder `out`, or else a new one: runs/<text>-<cell>, with a number when that is taken."""
    if out is not None:
        return RunFolder(out)
    first = str(sources[0]) if sources else DEFAULT_CORPUS
    name = f"{'text' if first == '-' else Path(first).stem or 'text'}-{config.model.cell}"
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return RunFolder(path)


def start_run(
    sources: Sequence[Source],
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    clock: Clock,
    *,
    force: bool = False,
) -> LanguageModel:
    """`train` with everything spelled out; the folder is touched only when the text is good."""
    _set_up(config.training)
    choose_device(config.training.device)
    for line in config.ignored():
        progress.message(f"note: {line}")
    with folder.prepared(force=force) as staging:
        tokens, vocabulary = build_token_file(sources, config.text, staging.path)
        config = _with_vocab_size(config, len(vocabulary))
        # Whatever is wrong shall show before the folder changes.
        BatchStream(tokens.train, config.training)
        _check_prompts(vocabulary, config)
        staging.write_config(config, [str(source) for source in sources])
        model = _first_model(config)
        del tokens
    trainer = _trainer(model, vocabulary, config, folder, progress, clock)
    return _fit(trainer, vocabulary, config, folder)


def resume_run(path: Source, progress: Progress, clock: Clock) -> LanguageModel:
    """Go on with an interrupted run as if it never had been; from the start if it is not begun.

    Raises:
        RunError: there is no run, or its checkpoint does not fit its text and settings.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    _set_up(config.training)
    vocabulary = load_vocabulary(folder.path)
    trainer = _trainer(_first_model(config), vocabulary, config, folder, progress, clock)
    if folder.last.is_file():
        trainer.resume()
    return _fit(trainer, vocabulary, config, folder)


def load(path: Source, device: str = "cpu") -> LanguageModel:
    """Read a model from a run's folder.

    Raises:
        RunError: the folder holds no run, or its files are damaged or do not fit together.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    vocabulary = load_vocabulary(folder.path)
    if len(vocabulary) != config.model.vocab_size:
        raise RunError(
            f"{folder.vocabulary} has {len(vocabulary)} tokens, but {folder.config} says"
            f" {config.model.vocab_size}"
        )
    if not folder.model.exists():
        raise RunError(
            f"{folder.model} is missing: the run was stopped before it had learned anything;"
            f" recurra train --resume {folder.path} goes on"
        )
    model = RecurrentLM(config.model)
    load_weights(folder.model, model)
    return LanguageModel(model.to(choose_device(device)).eval(), vocabulary, config, folder.path)


def _first_model(config: RunConfig) -> RecurrentLM:
    torch.manual_seed(config.training.seed)
    try:
        return RecurrentLM(config.model).to(choose_device(config.training.device))
    except (RuntimeError, MemoryError) as error:
        size = f"{config.model.num_layers} x {config.model.hidden_size}"
        raise ConfigError(f"there is not the memory for a model of {size} units") from error


def _check_prompts(vocabulary: Vocabulary, config: RunConfig) -> None:
    for prompt in _prompts(config):
        try:
            vocabulary.encode(prompt)
        except UnknownTokenError as error:
            raise SourceError(
                f"the prompt {prompt!r} has {error.symbol!r} at position {error.position}, which"
                " the training part of the text never has"
            ) from error


def _prompts(config: RunConfig) -> tuple[str, ...]:
    return tuple(prepare_text(prompt, config.text) for prompt in config.training.prompt)


def _set_up(config: TrainingConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.plot:
        require_matplotlib()


def _with_vocab_size(config: RunConfig, size: int) -> RunConfig:
    values = config.to_dict()
    values["model"]["vocab_size"] = size
    return RunConfig.from_dict(values)


def _trainer(
    model: RecurrentLM,
    vocabulary: Vocabulary,
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    clock: Clock,
) -> Trainer:
    tokens = load_token_file(folder.path)
    return Trainer(
        model,
        tokens.train,
        tokens.val,
        predicted_sizes(tokens, vocabulary),
        _prompts(config),
        vocabulary,
        config.training,
        folder,
        progress,
        clock,
        _fingerprint(config, tokens),
    )


def _fingerprint(config: RunConfig, tokens: TokenFile) -> str:
    """One hash over all that decides how the training goes on."""
    parts = [config.to_dict(), tokens.sha256, tokens.vocabulary_fingerprint, tokens.num_tokens]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fit(
    trainer: Trainer, vocabulary: Vocabulary, config: RunConfig, folder: RunFolder
) -> LanguageModel:
    try:
        records = trainer.fit()
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            raise
        # Not at the end of a step: before the first one, or by a second Ctrl-C.
        raise KeyboardInterrupt(f"go on with recurra train --resume {folder.path}") from None
    except DivergenceError:
        if not folder.model.is_file():
            # Nothing was learned, so there is nothing to keep.
            shutil.rmtree(folder.path)
        raise
    if config.training.plot:
        write_svg(records, folder.curve, title=folder.path.name)
    return LanguageModel(trainer.model, vocabulary, config, folder.path)
