"""What a person holds: `train()`, `load()` and the `LanguageModel` they return.

A language model here is a network, the vocabulary it speaks and the settings it was trained with.
This module only joins the rooms below it; nothing is computed here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recurra.config import RunConfig, TrainingConfig, UnknownRule
from recurra.devices import choose_device
from recurra.errors import (
    ConfigError,
    DivergenceError,
    RunError,
    SourceError,
    UnknownTokenError,
)
from recurra.files import write_json
from recurra.inference.evaluate import Evaluation, evaluate, evaluate_text
from recurra.inference.generate import generate, stream
from recurra.inference.sampling import GenerationConfig
from recurra.inference.score import Score, score_text
from recurra.model import RecurrentLM
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.text.corpus import prepare_text, read_bytes, read_text
from recurra.text.token_file import (
    TokenFile,
    build_token_file,
    load_token_file,
    load_vocabulary,
)
from recurra.text.vocabulary import ByteVocabulary, Vocabulary
from recurra.training.batches import BatchStream
from recurra.training.budget import Clock
from recurra.training.checkpoint import load_weights, save_weights
from recurra.training.curve import require_matplotlib, write_svg
from recurra.training.progress import ConsoleProgress, Progress
from recurra.training.run_folder import RunFolder
from recurra.training.trainer import Trainer

Source = str | Path


class LanguageModel:
    """A trained network with the vocabulary it speaks.

    Attributes:
        model: the `RecurrentLM`, a torch.nn.Module.
        vocabulary: text to ids and back.
        config: all settings of the run.
        path: the run's folder, or None.
    """

    def __init__(
        self,
        model: RecurrentLM,
        vocabulary: Vocabulary,
        config: RunConfig,
        path: Path | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.config = config
        self.path = path

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"LanguageModel({model.cell}, {model.num_layers} x {model.hidden_size},"
            f" {self.config.text.tokens} vocabulary of {len(self.vocabulary)},"
            f" {self.model.num_parameters:,} parameters)"
        )

    def generate(
        self, prompt: str = "", *, unknown: UnknownRule = "error", **settings: Any
    ) -> str | list[str]:
        """Continue a prompt.

        Args:
            prompt: read first; may be empty.
            unknown: `error`, or `replace` to read symbols that are not in the vocabulary as <unk>.
            settings: fields of `GenerationConfig`: max_new_tokens, temperature, top_k, top_p,
                min_p, repetition_penalty, stop, num_samples, seed, greedy.

        Returns:
            The new text without the prompt; a list of texts when num_samples is above 1.

        Raises:
            UnknownTokenError, ConfigError: the prompt or a setting will not do.
        """
        config = GenerationConfig(**settings)
        prepared = prepare_text(prompt, self.config.text)
        texts = generate(self.model, self.vocabulary, prepared, config, unknown)
        return texts if config.num_samples > 1 else texts[0]

    def stream(
        self, prompt: str = "", *, unknown: UnknownRule = "error", **settings: Any
    ) -> Iterator[str]:
        """Continue a prompt piece by piece; arguments and errors as in `generate`."""
        config = GenerationConfig(**settings)
        prepared = prepare_text(prompt, self.config.text)
        return stream(self.model, self.vocabulary, prepared, config, unknown)

    def evaluate(
        self, text: str | bytes, *, window: int | None = None, unknown: UnknownRule = "replace"
    ) -> Evaluation:
        """How well the model predicts a text: perplexity, bits per token, character and byte.

        Args:
            text: prepared as the training text was (newlines, letters_only); bytes only for a
                model of bytes, which reads them as they are.
            window: read windows of this many tokens from the zero state instead of carrying the
                state through the whole text.
            unknown: what to do with symbols that are not in the vocabulary.
        """
        if isinstance(text, bytes):
            return self._evaluate_bytes(text, window)
        prepared = prepare_text(text, self.config.text)
        return evaluate_text(self.model, self.vocabulary, prepared, window=window, unknown=unknown)

    def validate(self, *, window: int | None = None) -> Evaluation:
        """`evaluate` on the part of the run's own text that was never trained on.

        Raises:
            RunError: the model belongs to no run, or the run kept nothing for validation.
        """
        tokens = self._own_tokens()
        num_chars, num_bytes = _predicted_sizes(tokens, self.vocabulary)
        return evaluate(
            self.model,
            tokens.val,
            window=window,
            num_chars=num_chars,
            num_bytes=num_bytes,
            unknown_id=self.vocabulary.unknown_id,
        )

    def _evaluate_bytes(self, data: bytes, window: int | None) -> Evaluation:
        if not isinstance(self.vocabulary, ByteVocabulary):
            raise ConfigError(f"this model reads {self.config.text.tokens} tokens, not bytes")
        ids = self.vocabulary.encode_bytes(data)
        # A character counts where its first byte stands; the others look like 0b10xxxxxx.
        num_chars = int(np.count_nonzero((ids[1:] & 0xC0) != 0x80))
        return evaluate(self.model, ids, window=window, num_chars=num_chars, num_bytes=len(ids) - 1)

    def score(self, text: str | bytes, *, unknown: UnknownRule = "replace") -> Score:
        """The surprise of each character, in bits, given those before it.

        The first is judged from the zero state. The text is prepared as the training text was;
        `Score.text` is what was scored. Bytes that are not UTF-8 are scored as U+FFFD, since only
        characters can be shown.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        prepared = prepare_text(text, self.config.text)
        return score_text(self.model, self.vocabulary, prepared, unknown)

    def save(self, path: Source) -> None:
        """Write the model to a folder that `load` reads; without the state of its training.

        Raises:
            RunError: the folder exists and is not empty.
        """
        folder = RunFolder(path)
        with folder.prepared(force=False) as staging:
            write_json(staging.vocabulary, self.vocabulary.to_dict())
            save_weights(staging.model, self.model, {})
            sources = RunFolder(self.path).read_sources() if self.path else []
            staging.write_config(self.config, sources)

    def read(self, sources: Source | Sequence[Source] = ()) -> str | bytes:
        """A text prepared as the training text was: what `evaluate` and `score` take.

        Args:
            sources: files, folders, `-` or corpus names; without any, the part of the run's own
                text that was never trained on.

        Returns:
            The text; bytes for a model of bytes.

        Raises:
            SourceError, CorpusError: a source cannot be read.
            RunError: the model belongs to no run, or the run kept nothing for validation.
        """
        sources = _as_list(sources)
        if not sources:
            return self._validation_part()
        if isinstance(self.vocabulary, ByteVocabulary):
            return read_bytes(sources, self.config.text)
        return read_text(sources, self.config.text)

    def _own_tokens(self) -> TokenFile:
        if self.path is None:
            raise RunError("this model belongs to no run, so there is no validation part")
        tokens = load_token_file(self.path)
        if len(tokens.val) < 2:
            raise RunError(f"{self.path} kept no text for validation; name a text to read")
        return tokens

    def _validation_part(self) -> str | bytes:
        ids = self._own_tokens().val
        if isinstance(self.vocabulary, ByteVocabulary):
            return ids.astype(np.uint8).tobytes()
        return self.vocabulary.decode(ids)


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
    sources = _as_list(source)
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
    model = RecurrentLM(config.model)
    load_weights(folder.model, model)
    return LanguageModel(model.to(choose_device(device)).eval(), vocabulary, config, folder.path)


def _as_list(source: Source | Sequence[Source]) -> list[Source]:
    return [source] if isinstance(source, (str, Path)) else list(source)


def _predicted_sizes(tokens: TokenFile, vocabulary: Vocabulary) -> tuple[int, int]:
    """Characters and UTF-8 bytes of the validation part without its first token, which is only
    read; that one counts as a character where it is <unk>."""
    first = vocabulary.decode(tokens.val[:1])
    return tokens.val_chars - len(first), tokens.val_bytes - len(first.encode("utf-8"))


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
        _predicted_sizes(tokens, vocabulary),
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
    except DivergenceError:
        if not folder.model.is_file():
            # Nothing was learned, so there is nothing to keep.
            shutil.rmtree(folder.path)
        raise
    if config.training.plot:
        write_svg(records, folder.curve, title=folder.path.name)
    return LanguageModel(trainer.model, vocabulary, config, folder.path)
