"""Evaluation: perplexity, and bits per token, character and byte.

The first token is only read: N ids give N - 1 predictions. Knows neither how the model was trained
nor which part of a text is fair to measure on; both are the caller's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from recurra.errors import ConfigError, NonFiniteError, SourceError
from recurra.inference.document import Document
from recurra.inference.reading import IdArray, as_id_array, read_nats
from recurra.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM

# Windows that are read side by side. More would not be faster on a CPU, only larger.
WINDOWS_PER_BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """The sum over all predicted tokens, and what they cover; all figures follow from these."""

    total_nats: float
    """Surprisal of all predicted tokens together, in nats."""

    num_tokens: int
    """Predicted tokens: all but the first, which is only read."""

    num_chars: int | None = None
    """Characters that the predicted tokens complete; None where it was not given."""

    num_bytes: int | None = None
    """UTF-8 bytes of the predicted tokens; None where it was not given."""

    num_unknown: int = 0
    """Predicted tokens that are <unk>. With many, the other figures flatter the model: it is easier
    to say that some unknown symbol follows than which."""

    @property
    def nats_per_token(self) -> float:
        """Mean surprisal of a token, the cross-entropy that training minimises."""
        return self.total_nats / self.num_tokens

    @property
    def bits_per_token(self) -> float:
        """The same in bits."""
        return self._bits_per(self.num_tokens)

    @property
    def bits_per_char(self) -> float:
        """Bits per character; nan when the number of characters is not known."""
        return self._bits_per(self.num_chars)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; nan when the number of bytes is not known."""
        return self._bits_per(self.num_bytes)

    @property
    def perplexity(self) -> float:
        """exp(nats per token): among how many equally likely tokens the model would be choosing."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, float | int | None]:
        """All counts and figures by name, ready for JSON: None for not known or infinite."""
        figures: dict[str, float | int | None] = {
            "nats_per_token": self.nats_per_token,
            "bits_per_token": self.bits_per_token,
            "bits_per_char": self.bits_per_char,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            "total_nats": self.total_nats,
            "num_tokens": self.num_tokens,
            "num_chars": self.num_chars,
            "num_bytes": self.num_bytes,
            "num_unknown": self.num_unknown,
        }
        return {k: None if v is None or not math.isfinite(v) else v for k, v in figures.items()}

    def __str__(self) -> str:
        unknown = f", {self.num_unknown:,} of them unknown" if self.num_unknown else ""
        return (
            f"perplexity      {self.perplexity:.4f}\n"
            f"nats per token  {self.nats_per_token:.4f}\n"
            f"bits per token  {self.bits_per_token:.4f}\n"
            f"bits per char   {self.bits_per_char:.4f}\n"
            f"bits per byte   {self.bits_per_byte:.4f}\n"
            f"tokens          {self.num_tokens:,}{unknown}"
        )

    def _bits_per(self, count: int | None) -> float:
        return self.total_nats / math.log(2) / count if count else math.nan


def evaluate(
    model: RecurrentLM,
    ids: IdArray | Tensor | Sequence[int],
    *,
    num_chars: int | None = None,
    num_bytes: int | None = None,
    unknown_id: int | None = None,
    window: int | None = None,
    num_streams: int = 1,
    chunk: int = 512,
    max_tokens: int | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Predict ids[1:] from ids[:-1] and sum the surprisal, in float64, every target once.

    By default the text is one stream whose state is carried from its first token to its last. With
    `window`, it is cut into windows of that many inputs (the last may be shorter), each read from
    the zero state: what a model without memory of more than one window would see. With
    `num_streams`, it is cut into that many parts of nearly equal length, read in parallel, each
    from the zero state and carried within: a quick estimate of the default.

    Args:
        ids: (N,) of any integer type, memory-mapped or not; converted chunk by chunk.
        num_chars: characters that ids[1:] complete, for bits per character.
        num_bytes: UTF-8 bytes of ids[1:], for bits per byte.
        unknown_id: the id to be counted as unknown.
        chunk: most steps in one call of the model; changes memory and speed, not the result.
        max_tokens: predict only this many tokens, from the start. The two counts are then reduced
            in proportion.
        processes: share the streams or windows; all of them get the whole sum.

    Raises:
        SourceError: fewer than 2 ids, so there is nothing to predict.
        ConfigError: a size is below 1, or both window and num_streams are asked for.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    _check(window=window, num_streams=num_streams, chunk=chunk, max_tokens=max_tokens)
    array = as_id_array(ids)
    available = len(array) - 1
    if available < 1:
        raise SourceError(
            f"a text of {len(array)} tokens has none to predict: the first is only read;"
            " give at least 2"
        )
    total = available if max_tokens is None else min(available, max_tokens)
    rows_at_once = num_streams if window is None else WINDOWS_PER_BATCH
    starts, lengths = _windows(total, window) if window else _streams(total, num_streams)
    own = processes.share(len(starts))
    starts, lengths = starts[own], lengths[own]
    nats, num_unknown = 0.0, 0
    for first in range(0, len(starts), rows_at_once):
        batch = slice(first, first + rows_at_once)
        for targets, surprisal in read_nats(
            model, array, starts[batch], lengths[batch], chunk=chunk
        ):
            nats += float(surprisal.sum())
            if unknown_id is not None:
                num_unknown += int(np.count_nonzero(targets == unknown_id))
    nats, unknown = processes.sum([nats, num_unknown])
    if not math.isfinite(nats):
        raise NonFiniteError("the model's predictions are NaN or infinite; its weights are damaged")
    return Evaluation(
        total_nats=nats,
        num_tokens=total,
        num_chars=_in_proportion(num_chars, total, available),
        num_bytes=_in_proportion(num_bytes, total, available),
        num_unknown=int(unknown),
    )


def evaluate_document(
    model: RecurrentLM,
    document: Document,
    *,
    window: int | None = None,
    num_streams: int = 1,
    chunk: int = 512,
    max_tokens: int | None = None,
) -> Evaluation:
    """`evaluate` on a document, with exact counts of the characters and bytes that it predicts.

    With char tokens, num_chars is len(text) - 1.

    Raises:
        SourceError, ConfigError, NonFiniteError: as `evaluate`.
    """
    result = evaluate(
        model,
        document.ids,
        unknown_id=document.unknown_id,
        window=window,
        num_streams=num_streams,
        chunk=chunk,
        max_tokens=max_tokens,
    )
    num_chars, num_bytes = document.extent(result.num_tokens)
    return dataclasses.replace(result, num_chars=num_chars, num_bytes=num_bytes)


def _check(*, window: int | None = None, num_streams: int = 1, **sizes: int | None) -> None:
    for name, size in {"window": window, "num_streams": num_streams, **sizes}.items():
        if size is not None and size < 1:
            raise ConfigError(f"{name} must be at least 1, not {size}")
    if window is not None and num_streams > 1:
        raise ConfigError("window and num_streams are two ways to cut the text; choose one")


def _windows(total: int, window: int) -> tuple[Sequence[int], list[int]]:
    starts = range(0, total, window)
    return starts, [min(window, total - start) for start in starts]


def _streams(total: int, num_streams: int) -> tuple[list[int], list[int]]:
    """Starts and lengths of contiguous parts that differ by one token at most, longest first."""
    count = min(num_streams, total)
    short, longer = divmod(total, count)
    lengths = [short + (row < longer) for row in range(count)]
    return list(accumulate(lengths, initial=0))[:-1], lengths


def _in_proportion(count: int | None, part: int, whole: int) -> int | None:
    return count if count is None or part == whole else max(1, round(count * part / whole))
