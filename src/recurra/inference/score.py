"""Per-character surprisal (bits) of a text under a model.

A character that costs many bits is one that the model did not expect: a typo, a rare name, a line
that does not belong. `report/score_page.py` renders it as a page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from recurra.errors import ConfigError, NonFiniteError, SourceError
from recurra.inference.document import Document
from recurra.inference.reading import (
    FloatArray,
    IdArray,
    evaluation_mode,
    read_nats,
    token_nats,
)
from recurra.inference.spans import spread_over_characters

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM


@dataclass(frozen=True, eq=False)
class LineScore:
    """One line of a scored text; the bits of its newline are its own."""

    number: int
    """Counted from 1."""

    text: str
    """The line, shown without its newline."""

    bits: float
    """Surprisal of all its characters, newline included."""

    bits_per_char: float
    """The mean over its characters, newline included."""

    surprisal: FloatArray
    """Bits of each of its characters, newline included."""


@dataclass(frozen=True, eq=False)
class Score:
    """A text and the surprisal of its characters."""

    text: str
    """The text that was read."""

    surprisal: FloatArray
    """(len(text),) float64: bits of each character given all before it."""

    num_unknown: int = 0
    """Tokens that are not in the vocabulary; they have the bits of <unk>, whichever they are."""

    @property
    def total_bits(self) -> float:
        """Bits of the whole text, its first character included."""
        return float(self.surprisal.sum())

    @property
    def bits_per_char(self) -> float:
        """Mean surprisal of a character."""
        return self.total_bits / len(self.text)

    @cached_property
    def lines(self) -> list[LineScore]:
        """The lines of the text in order; a newline at its end begins no further line."""
        lines = []
        first = 0
        for number, line in enumerate(self.text.removesuffix("\n").split("\n"), start=1):
            end = min(first + len(line) + 1, len(self.text))
            surprisal = self.surprisal[first:end]
            bits = float(surprisal.sum())
            lines.append(LineScore(number, line, bits, bits / (end - first), surprisal))
            first = end
        return lines

    def top(self, count: int) -> list[LineScore]:
        """The `count` lines with most bits per character, most surprising first, ties in order."""
        if count < 0:
            raise ConfigError(f"the number of lines must not be negative, and is {count}")
        return sorted(self.lines, key=lambda line: -line.bits_per_char)[:count]


def score_document(model: RecurrentLM, document: Document, *, chunk: int = 512) -> Score:
    """Read a document once, with the state carried, and return the surprisal of each character.

    The first token is predicted from the zero state (`model.initial_logits`), so the bits of the
    characters sum to those of all tokens. They are exact for char tokens. A character of several
    byte tokens has the sum of their bits. The bits of a token of several characters (words, BPE)
    are divided evenly over its bytes, because the model does not say more.

    Args:
        chunk: most steps in one call of the model; changes memory and speed, not the result.

    Raises:
        SourceError: the text is empty.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    if not document.text:
        raise SourceError("there is nothing to score: the text is empty")
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, not {chunk}")
    bits = _token_bits(model, document.ids, chunk)
    if not np.isfinite(bits).all():
        raise NonFiniteError("the model's predictions are NaN or infinite; its weights are damaged")
    surprisal = spread_over_characters(bits, document.token_sizes, document.char_sizes)
    unknown_id = document.unknown_id
    num_unknown = 0 if unknown_id is None else int(np.count_nonzero(document.ids == unknown_id))
    return Score(text=document.text, surprisal=surprisal, num_unknown=num_unknown)


def _token_bits(model: RecurrentLM, ids: IdArray, chunk: int) -> FloatArray:
    """Bits of each of the (N,) ids, the first one from the zero state: (N,)."""
    with evaluation_mode(model):
        first = torch.tensor([int(ids[0])], device=model.device)
        nats = [token_nats(model.initial_logits(), first).cpu().numpy()]
    read = read_nats(model, ids, [0], [len(ids) - 1], chunk=chunk)
    nats.extend(surprisal[0] for _, surprisal in read)
    bits: FloatArray = np.concatenate(nats).astype(np.float64) / math.log(2)
    return bits
