"""`LanguageModel`: a trained network together with its vocabulary and run configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from recurra.config import RunConfig, UnknownRule
from recurra.config.checks import require
from recurra.data.token_file import TokenFile, load_token_file
from recurra.engine.sampling import GenerationConfig
from recurra.errors import RunError
from recurra.inference.document import (
    Document,
    decode_document,
    encode_document,
    extent_of_first,
    read_document,
)
from recurra.inference.dynamic import DynamicConfig, evaluate_dynamically
from recurra.inference.evaluate import Evaluation, evaluate, evaluate_document
from recurra.inference.generate import generate, stream
from recurra.inference.score import Score, score_document
from recurra.io.files import write_json
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runs.directory import RunDirectory
from recurra.runs.weights import save_weights
from recurra.text.corpus import prepare_text
from recurra.text.vocabulary import Vocabulary

Source = str | Path


class LanguageModel:
    """A trained network with its vocabulary and run configuration.

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
            UnknownTokenError, ConfigError: the prompt or a setting is invalid.
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
        return evaluate_document(self.model, self._encode(text, unknown), window=window)

    def validate(self, *, window: int | None = None) -> Evaluation:
        """`evaluate` on the part of the run's own text that was never trained on.

        Raises:
            RunError: the model belongs to no run, or the run kept nothing for validation.
        """
        tokens = self._own_tokens()
        num_chars, num_bytes = predicted_sizes(tokens, self.vocabulary)
        return evaluate(
            self.model,
            tokens.val,
            window=window,
            num_chars=num_chars,
            num_bytes=num_bytes,
            unknown_id=self.vocabulary.unknown_id,
        )

    def evaluate_dynamically(
        self,
        text: str | bytes | None = None,
        *,
        unknown: UnknownRule = "replace",
        **settings: Any,
    ) -> Evaluation:
        """`evaluate` with dynamic evaluation: the model adapts to the text that it has predicted.

        See `inference/dynamic.py`. The weights are restored afterwards.

        Args:
            text: as in `evaluate`; by default the run's own validation part.
            settings: fields of `DynamicConfig`: segment, lr, decay.

        Raises:
            RunError: the model belongs to no run, so the text it was trained on is not known.
            ConfigError, NonFiniteError: a setting is invalid.
        """
        config = DynamicConfig(**settings)
        own = self._own_tokens(with_validation=text is None)
        if text is None:
            ids: Any = own.val
            static = self.validate()
        else:
            document = self._encode(text, unknown)
            static, ids = evaluate_document(self.model, document), document.ids
        nats = evaluate_dynamically(self.model, ids, own.train, config)
        return dataclasses.replace(static, total_nats=nats)

    def _encode(self, text: str | bytes, unknown: UnknownRule) -> Document:
        return encode_document(text, self.vocabulary, self.config.text, unknown)

    def score(self, text: str | bytes, *, unknown: UnknownRule = "replace") -> Score:
        """Return the surprisal of each character in bits, given those before it.

        The first character is predicted from the zero state. The text is prepared as the training
        text was; `Score.text` is what was scored. A model of bytes scores bytes as they are, and
        shows those that are not UTF-8 as U+FFFD; other models decode bytes first.
        """
        if isinstance(text, bytes) and self.config.text.tokens != "byte":
            text = text.decode("utf-8", "replace")
        return score_document(self.model, self._encode(text, unknown))

    def save(self, path: Source) -> None:
        """Write the model to a folder that `load` reads; without the state of its training.

        Raises:
            RunError: the folder exists and is not empty.
        """
        folder = RunDirectory(path)
        with folder.prepared(force=False) as staging:
            write_json(staging.vocabulary, self.vocabulary.to_dict())
            save_weights(staging.model, self.model, {})
            sources = RunDirectory(self.path).read_sources() if self.path else []
            staging.write_config(self.config, sources)
        folder.unlock()

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
        sources = as_list(sources)
        if not sources:
            return decode_document(self._own_tokens().val, self.vocabulary)
        return read_document(sources, self.vocabulary, self.config.text)

    def _own_tokens(self, *, with_validation: bool = True) -> TokenFile:
        if self.path is None:
            raise RunError("this model belongs to no run, so its own text is not known")
        tokens = load_token_file(self.path)
        if with_validation and len(tokens.val) < 2:
            raise RunError(f"{self.path} kept no text for validation; name a text to read")
        tokens.check_ids(len(self.vocabulary))
        return tokens


def as_list(source: Source | Sequence[Source]) -> list[Source]:
    """One source or several, as a list.

    Raises:
        ConfigError: it is something else.
    """
    sources = [source] if isinstance(source, (str, Path)) else source
    is_several = isinstance(sources, Sequence) and all(isinstance(s, (str, Path)) for s in sources)
    require(is_several, f"a source is a path or a name, or several; not {shortened(source)}")
    return list(sources)


def predicted_sizes(tokens: TokenFile, vocabulary: Vocabulary) -> tuple[int, int]:
    """Return characters and UTF-8 bytes of the validation part without its first token, which is
    not predicted."""
    num_chars, num_bytes = extent_of_first(tokens.val[:2], vocabulary)
    return tokens.val_chars - num_chars, tokens.val_bytes - num_bytes
