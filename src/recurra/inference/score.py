"""Per-character surprisal (bits) of a text under a model.

A high surprisal marks a character that the model did not expect, for example a typo or a rare name.
`report/score_page.py` renders the result as HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from recurra.engine.reader import token_nats
from recurra.errors import ConfigError, NonFiniteError, SourceError
from recurra.inference.display import line_html, score_excerpt_html
from recurra.inference.document import Document
from recurra.inference.evaluate import ReadingProgress
from recurra.inference.reading import (
    FloatArray,
    IdArray,
    evaluation_mode,
    read_nats,
)
from recurra.inference.spans import spread_over_characters

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM


@dataclass(frozen=True, eq=False)
class LineScore:
    """One line of a scored text, including its newline."""

    number: int
    """Line number, starting at 1."""

    text: str
    """The line without its newline."""

    bits: float
    """Total surprisal in bits, including the newline."""

    bits_per_char: float
    """Mean surprisal per character in bits, including the newline."""

    surprisal: FloatArray
    """Surprisal of each character in bits, including the newline."""

    def _repr_html_(self) -> str:
        return line_html(self)


@dataclass(frozen=True, eq=False)
class Score:
    """A text and the surprisal of its characters.

    Examples:
        >>> import numpy as np
        >>> from recurra.inference.score import Score
        >>> score = Score("cat", np.array([1.0, 2.0, 6.0]))
        >>> score.total_bits, score.bits_per_char
        (9.0, 3.0)
    """

    text: str
    """The scored text."""

    surprisal: FloatArray
    """(len(text),) float64, the surprisal in bits of each character given all characters before
    it."""

    num_unknown: int = 0
    """Number of tokens that are not in the vocabulary; each has the surprisal of <unk>."""

    num_tokens: int | None = None
    """Number of tokens of the text, or None if unknown."""

    @property
    def unknown_share(self) -> float:
        """Fraction of the tokens that are <unk>; NaN if the number of tokens is unknown."""
        return self.num_unknown / self.num_tokens if self.num_tokens else math.nan

    @property
    def total_bits(self) -> float:
        """Total surprisal of the text in bits, including the first character."""
        return float(self.surprisal.sum())

    @property
    def bits_per_char(self) -> float:
        """Mean surprisal per character in bits."""
        return self.total_bits / len(self.text)

    @cached_property
    def lines(self) -> list[LineScore]:
        """The lines of the text, in order; a final newline does not begin another line."""
        lines = []
        first = 0
        for number, line in enumerate(self.text.removesuffix("\n").split("\n"), start=1):
            end = min(first + len(line) + 1, len(self.text))
            surprisal = self.surprisal[first:end]
            bits = float(surprisal.sum())
            lines.append(LineScore(number, line, bits, bits / (end - first), surprisal))
            first = end
        return lines

    def _repr_html_(self) -> str:
        return score_excerpt_html(self)

    def top(self, count: int) -> list[LineScore]:
        """Return the `count` lines with the most bits per character, in descending order.

        Lines with equal values stay in the order of the text. Blank lines are left out: their only
        character is a newline, which would often be ranked first.

        Raises:
            ConfigError: `count` is negative.
        """
        if count < 0:
            raise ConfigError(f"count is {count}; it must not be negative")
        return sorted(self._ranked, key=lambda line: -line.bits_per_char)[:count]

    @cached_property
    def outlier_threshold(self) -> float:
        """Bits per character above which a line is an outlier; infinite if all lines are blank.

        It is the upper quartile of the lines that are not blank plus three times their
        interquartile range, the outer fence of Tukey (Exploratory Data Analysis, 1977, chapter 2).
        """
        values = [line.bits_per_char for line in self._ranked]
        if not values:
            return math.inf
        lower, upper = np.quantile(values, (0.25, 0.75))
        return float(upper + 3.0 * (upper - lower))

    @cached_property
    def outliers(self) -> list[LineScore]:
        """The lines above `outlier_threshold` that are not blank, in the order of the text."""
        return [line for line in self._ranked if line.bits_per_char > self.outlier_threshold]

    @cached_property
    def _ranked(self) -> list[LineScore]:
        return [line for line in self.lines if line.text.strip()]


def score_document(
    model: RecurrentLM,
    document: Document,
    *,
    chunk: int = 512,
    progress: ReadingProgress | None = None,
) -> Score:
    """Return the surprisal of each character of a document.

    The state is carried through the document. The first token is predicted from the zero state
    (`model.initial_logits`), so the bits of the characters sum to those of all tokens. With
    character tokens, the surprisal is exact. A character of several byte tokens has the sum of
    their bits. The bits of a token of several characters (words, BPE) are divided evenly over its
    bytes.

    Args:
        model: the model.
        document: the text to score.
        chunk: maximum number of steps in one call of the model. It affects memory and speed, but
            not the result.
        progress: called after each chunk with the number of tokens so far and in total.

    Raises:
        SourceError: the text is empty.
        ConfigError: `chunk` is less than 1.
        NonFiniteError: the logits are NaN or infinite.
    """
    if not document.text:
        raise SourceError("cannot score an empty text")
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, not {chunk}")
    bits = _token_bits(model, document.ids, chunk, progress)
    if not np.isfinite(bits).all():
        raise NonFiniteError("the model's predictions are NaN or infinite; its weights are damaged")
    surprisal = spread_over_characters(bits, document.token_sizes, document.char_sizes)
    unknown_id = document.unknown_id
    num_unknown = 0 if unknown_id is None else int(np.count_nonzero(document.ids == unknown_id))
    return Score(document.text, surprisal, num_unknown, len(document.ids))


def _token_bits(
    model: RecurrentLM, ids: IdArray, chunk: int, progress: ReadingProgress | None
) -> FloatArray:
    """Return the surprisal of each of the (N,) ids in bits, from the zero state: (N,)."""
    with evaluation_mode(model):
        first = torch.tensor([int(ids[0])], device=model.device)
        nats = [token_nats(model.initial_logits(), first).cpu().numpy()]
    read = read_nats(model, ids, [0], [len(ids) - 1], chunk=chunk)
    num_read = 1
    for _, surprisal in read:
        nats.append(surprisal[0])
        num_read += surprisal.size
        if progress is not None:
            progress(num_read, len(ids))
    bits: FloatArray = np.concatenate(nats).astype(np.float64) / math.log(2)
    return bits
