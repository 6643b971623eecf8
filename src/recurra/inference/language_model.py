"""`LanguageModel`: a trained network together with its vocabulary and run configuration."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from recurra.config import RunConfig, UnknownRule
from recurra.config.checks import require
from recurra.data.token_file import TokenFile, load_token_file
from recurra.engine.sampling import GenerationConfig
from recurra.errors import RunError
from recurra.inference.display import model_html
from recurra.inference.document import (
    Document,
    decode_document,
    encode_document,
    extent_of_first,
    read_document,
)
from recurra.inference.dynamic import DynamicConfig, evaluate_dynamically
from recurra.inference.evaluate import Evaluation, ReadingProgress, evaluate, evaluate_document
from recurra.inference.generate import generate, stream
from recurra.inference.novelty import (
    KnownLines,
    known_lines,
    texts_without_known_lines,
    without_known_lines,
)
from recurra.inference.score import Score, score_document
from recurra.io.json_files import write_json
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runs.directory import RunDirectory
from recurra.runs.provenance import Provenance
from recurra.runs.staging import staged_run
from recurra.runs.weights import save_weights
from recurra.text.corpus import prepare_text
from recurra.text.vocabulary import Vocabulary

Source = str | Path
_logger = logging.getLogger("recurra")


class LanguageModel:
    """A trained network with its vocabulary and run configuration.

    Attributes:
        model: the `RecurrentLM`, a torch.nn.Module.
        vocabulary: the `Vocabulary`, which encodes text and decodes ids.
        config: all settings of the run.
        path: the run directory, or None.

    Examples:
        >>> import recurra
        >>> lm = recurra.train(hidden_size=8, steps=5)
        >>> lm
        LanguageModel(lstm, 1 x 8, char vocabulary of 58, 6,602 parameters)
        >>> lm.model.num_parameters
        6602
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
        self._known_lines: KnownLines | None = None

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"LanguageModel({model.cell}, {model.num_layers} x {model.hidden_size},"
            f" {self.config.text.tokens} vocabulary of {len(self.vocabulary)},"
            f" {self.model.num_parameters:,} parameters)"
        )

    def _repr_html_(self) -> str:
        return model_html(self)

    def generate(
        self,
        prompt: str = "",
        *,
        unknown: UnknownRule = "error",
        only_new: bool = False,
        **settings: Any,
    ) -> str | list[str]:
        """Continue a prompt.

        A warning is logged if a stop string contains a character that the model cannot generate.

        Args:
            prompt: the text to continue; can be empty.
            unknown: "error", or "replace" to read symbols outside the vocabulary as <unk>.
            only_new: leave out generated lines that occur as a line of the text of the run. The
                result consists of whole lines: the first one includes the end of the prompt.
            settings: fields of `GenerationConfig`: max_new_tokens, temperature, top_k, top_p,
                min_p, repetition_penalty, stop, num_samples, seed, greedy.

        Returns:
            The new text without the prompt; a list of texts if num_samples is greater than 1. With
            `only_new`, the list contains only texts that have a new line.

        Raises:
            UnknownTokenError: a symbol of the prompt is not in the vocabulary and `unknown` is
                "error".
            ConfigError: a setting is invalid.
            RunError: `only_new` is set, and the text of the run is not available or has changed.

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> len(lm.generate("The cat", max_new_tokens=20, temperature=0.8, seed=1))
            20
            >>> len(lm.generate("The cat", num_samples=3))
            3
        """
        prepared, config = self._prepare(prompt, settings)
        known = self._lines_of_run() if only_new else None
        texts = generate(self.model, self.vocabulary, prepared, config, unknown)
        if known is not None:
            texts = texts_without_known_lines(texts, known, prepared)
        return texts if config.num_samples > 1 else "".join(texts)

    def stream(
        self,
        prompt: str = "",
        *,
        unknown: UnknownRule = "error",
        only_new: bool = False,
        **settings: Any,
    ) -> Iterator[str]:
        """Return an iterator over the continuation of a prompt, in pieces of text.

        Arguments and errors are those of `generate`; `num_samples` must be 1.

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> pieces = lm.stream("The cat", max_new_tokens=20, seed=1)
            >>> "".join(pieces) == lm.generate("The cat", max_new_tokens=20, seed=1)
            True
        """
        prepared, config = self._prepare(prompt, settings)
        known = self._lines_of_run() if only_new else None
        pieces = stream(self.model, self.vocabulary, prepared, config, unknown)
        return pieces if known is None else without_known_lines(pieces, known, prepared)

    def _prepare(self, prompt: str, settings: dict[str, Any]) -> tuple[str, GenerationConfig]:
        config = GenerationConfig(**settings)
        for stop in config.stop:
            if missing := self.vocabulary.missing_characters(stop):
                _logger.warning(
                    "the stop string %r cannot occur: %r is not in the vocabulary", stop, missing[0]
                )
        return prepare_text(prompt, self.config.text), config

    def _lines_of_run(self) -> KnownLines:
        if self._known_lines is None:
            self._known_lines = known_lines(self.path, self.vocabulary, self.config.text)
        return self._known_lines

    def evaluate(
        self,
        text: str | bytes,
        *,
        window: int | None = None,
        unknown: UnknownRule = "replace",
        progress: ReadingProgress | None = None,
    ) -> Evaluation:
        """Return perplexity and bits per token, character and byte of a text.

        Args:
            text: a string, which is prepared like the training text (newlines, letters_only); or
                bytes for a model with byte tokens, which are read unchanged.
            window: number of tokens in a window. Each window is read from the zero state instead of
                carrying the state through the text.
            unknown: "error", or "replace" to read symbols outside the vocabulary as <unk>.
            progress: called repeatedly with the number of predicted tokens so far and in total.

        Raises:
            SourceError: the text has fewer than 2 tokens.
            ConfigError: `text` is bytes and the model does not have byte tokens, or `window` is
                less than 1.
            UnknownTokenError: a symbol is not in the vocabulary and `unknown` is "error".

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> evaluation = lm.evaluate("The cat sat on the mat.")
            >>> evaluation.num_tokens
            22
        """
        document = self._encode(text, unknown)
        return evaluate_document(self.model, document, window=window, progress=progress)

    def validate(
        self, *, window: int | None = None, progress: ReadingProgress | None = None
    ) -> Evaluation:
        """Evaluate the model on the validation split of its run; see `evaluate`.

        Raises:
            RunError: the model has no run directory, or the run has no validation split.

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> evaluation = lm.validate()
            >>> evaluation.perplexity < len(lm.vocabulary)
            True
        """
        tokens = self._run_tokens()
        num_chars, num_bytes = predicted_sizes(tokens, self.vocabulary)
        return evaluate(
            self.model,
            tokens.val,
            window=window,
            num_chars=num_chars,
            num_bytes=num_bytes,
            unknown_id=self.vocabulary.unknown_id,
            progress=progress,
        )

    def evaluate_dynamically(
        self,
        text: str | bytes | None = None,
        *,
        unknown: UnknownRule = "replace",
        progress: ReadingProgress | None = None,
        **settings: Any,
    ) -> Evaluation:
        """Evaluate the model while it adapts to the text that it has predicted.

        See `inference/dynamic.py`. The weights are restored afterwards.

        Args:
            text: as in `evaluate`; by default, the validation split of the run.
            unknown, progress: as in `evaluate`.
            settings: fields of `DynamicConfig`: segment, lr, decay.

        Raises:
            RunError: the model has no run directory, so its training text is unknown; or `text` is
                None and the run has no validation split.
            ConfigError: a setting is invalid.
            NonFiniteError: the predictions became NaN or infinite, for example with a large lr.

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> text = "The cat sat on the mat. " * 10
            >>> lm.evaluate_dynamically(text).perplexity < lm.evaluate(text).perplexity
            True
        """
        config = DynamicConfig(**settings)
        tokens = self._run_tokens(with_validation=text is None)
        if text is None:
            ids: Any = tokens.val
            static = self.validate()
        else:
            document = self._encode(text, unknown)
            static, ids = evaluate_document(self.model, document), document.ids
        nats = evaluate_dynamically(self.model, ids, tokens.train, config, progress)
        return dataclasses.replace(static, total_nats=nats)

    def _encode(self, text: str | bytes, unknown: UnknownRule) -> Document:
        return encode_document(text, self.vocabulary, self.config.text, unknown)

    def score(
        self,
        text: str | bytes,
        *,
        unknown: UnknownRule = "replace",
        progress: ReadingProgress | None = None,
    ) -> Score:
        """Return the surprisal of each character in bits, given the characters before it.

        The first character is predicted from the zero state. The text is prepared like the training
        text; `Score.text` is the prepared text. A model with byte tokens scores bytes unchanged and
        shows invalid UTF-8 as U+FFFD; other models decode bytes first.

        Args:
            text: the text to score.
            unknown: "error", or "replace" to read symbols outside the vocabulary as <unk>.
            progress: called repeatedly with the number of tokens so far and in total.

        Raises:
            SourceError: the text is empty.
            UnknownTokenError: a symbol is not in the vocabulary and `unknown` is "error".

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> score = lm.score("The cat sat.")
            >>> score.surprisal.shape
            (12,)
        """
        if isinstance(text, bytes) and self.config.text.tokens != "byte":
            text = text.decode("utf-8", "replace")
        return score_document(self.model, self._encode(text, unknown), progress=progress)

    def save(self, path: Source) -> None:
        """Write the model to a new run directory, without the training state.

        `recurra.load` reads the directory.

        Raises:
            RunError: the directory exists and is not empty.

        Examples:
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> lm.save("story-model")
            >>> recurra.load("story-model")
            LanguageModel(lstm, 1 x 8, char vocabulary of 58, 6,602 parameters)
        """
        directory = RunDirectory(path)
        with staged_run(directory, force=False) as staging:
            write_json(staging.vocabulary, self.vocabulary.to_dict())
            save_weights(staging.model, self.model, {})
            provenance = RunDirectory(self.path).read_provenance() if self.path else Provenance()
            staging.write_config(self.config, provenance)
        directory.unlock()

    def read(self, sources: Source | Sequence[Source] = ()) -> str | bytes:
        """Return a text, prepared like the training text, for `evaluate` and `score`.

        Args:
            sources: files, directories, corpus names, or `-` for standard input. By default, the
                validation split of the run.

        Returns:
            The text; bytes for a model with byte tokens.

        Raises:
            SourceError, CorpusError: a source cannot be read.
            RunError: there are no sources, and the model has no run directory or the run has no
                validation split.

        Examples:
            >>> from pathlib import Path
            >>> import recurra
            >>> lm = recurra.train(hidden_size=8, steps=5)
            >>> _ = Path("cat.txt").write_text("The cat sat.")
            >>> lm.read("cat.txt")
            'The cat sat.'
        """
        sources = as_list(sources)
        if not sources:
            return decode_document(self._run_tokens().val, self.vocabulary)
        return read_document(sources, self.vocabulary, self.config.text)

    def _run_tokens(self, *, with_validation: bool = True) -> TokenFile:
        if self.path is None:
            raise RunError("the model has no run directory, so the text of its run is unknown")
        tokens = load_token_file(self.path)
        if with_validation and len(tokens.val) < 2:
            raise RunError(f"{self.path} has no text for validation; specify a text")
        tokens.check_ids(len(self.vocabulary))
        return tokens


def as_list(source: Source | Sequence[Source]) -> list[Source]:
    """Return one source or several as a list.

    Raises:
        ConfigError: `source` is neither a path or name nor a sequence of these.
    """
    sources = [source] if isinstance(source, (str, Path)) else source
    is_several = isinstance(sources, Sequence) and all(isinstance(s, (str, Path)) for s in sources)
    require(
        is_several,
        f"source is {shortened(source)}; it must be a path, a name, or a sequence of these",
    )
    return list(sources)


def predicted_sizes(tokens: TokenFile, vocabulary: Vocabulary) -> tuple[int, int]:
    """Return the number of characters and UTF-8 bytes that are predicted in the validation split.

    The first token is not predicted, so it is not counted.
    """
    num_chars, num_bytes = extent_of_first(tokens.val[:2], vocabulary)
    return tokens.val_chars - num_chars, tokens.val_bytes - num_bytes
