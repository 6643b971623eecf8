"""Evaluation: perplexity, and bits per token, character and byte.

The first token is not predicted: N ids give N - 1 predictions. The caller chooses a text that the
model was not trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

from recurra.errors import ConfigError, NonFiniteError, SourceError
from recurra.inference.display import evaluation_html
from recurra.inference.document import Document
from recurra.inference.reading import IdArray, as_id_array, read_nats
from recurra.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM

ReadingProgress: TypeAlias = Callable[[int, int], None]
"""A function that receives the number of tokens that have been read, and their total number."""
UNKNOWN_THRESHOLD = 0.001
"""Fraction of <unk> tokens above which metrics come with a remark."""
# Number of windows per batch. A larger batch uses more memory without being faster on a CPU.
WINDOWS_PER_BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """Total surprisal and counts of the predicted tokens; all metrics are derived from them.

    Examples:
        >>> import math
        >>> from recurra.inference.evaluate import Evaluation
        >>> evaluation = Evaluation(total_nats=10 * math.log(4), num_tokens=10)
        >>> round(evaluation.perplexity, 6), round(evaluation.bits_per_token, 6)
        (4.0, 2.0)
    """

    total_nats: float
    """Total surprisal of the predicted tokens in nats."""

    num_tokens: int
    """Number of predicted tokens: all except the first."""

    num_chars: int | None = None
    """Number of characters that the predicted tokens complete, or None if unknown."""

    num_bytes: int | None = None
    """Number of UTF-8 bytes of the predicted tokens, or None if unknown."""

    num_unknown: int = 0
    """Number of predicted tokens that are <unk>. If there are many, the other metrics are too
    optimistic, because <unk> is easier to predict than the symbol that it replaces."""

    @property
    def unknown_share(self) -> float:
        """Fraction of the predicted tokens that are <unk>."""
        return self.num_unknown / self.num_tokens

    @property
    def nats_per_token(self) -> float:
        """Mean surprisal of a token in nats: the cross-entropy that training minimizes."""
        return self.total_nats / self.num_tokens

    @property
    def bits_per_token(self) -> float:
        """Mean surprisal of a token in bits."""
        return self._bits_per(self.num_tokens)

    @property
    def bits_per_char(self) -> float:
        """Bits per character; NaN if the number of characters is unknown."""
        return self._bits_per(self.num_chars)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; NaN if the number of bytes is unknown."""
        return self._bits_per(self.num_bytes)

    @property
    def perplexity(self) -> float:
        """Perplexity, exp(nats per token); infinite on overflow."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, float | int | None]:
        """Return all counts and metrics by name, for JSON; unknown and infinite values are None."""
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
            "unknown_share": self.unknown_share,
        }
        return {k: None if v is None or not math.isfinite(v) else v for k, v in figures.items()}

    def __str__(self) -> str:
        unknown = f", {self.num_unknown:,} of them unknown" if self.num_unknown else ""
        remark = unknown_remark(self.unknown_share)
        return (
            f"perplexity      {self.perplexity:.4f}\n"
            f"nats per token  {self.nats_per_token:.4f}\n"
            f"bits per token  {self.bits_per_token:.4f}\n"
            f"bits per char   {self.bits_per_char:.4f}\n"
            f"bits per byte   {self.bits_per_byte:.4f}\n"
            f"tokens          {self.num_tokens:,}{unknown}"
            + (f"\nnote: {remark}" if remark else "")
        )

    def _repr_html_(self) -> str:
        return evaluation_html(self)

    def _bits_per(self, count: int | None) -> float:
        return self.total_nats / math.log(2) / count if count else math.nan


def unknown_remark(share: float, of_what: str = "predicted tokens") -> str | None:
    """Return a remark about the fraction of <unk> tokens, or None if it is negligible.

    Args:
        share: the fraction.
        of_what: the tokens that were counted, as text.
    """
    if not share > UNKNOWN_THRESHOLD:  # Also if it is NaN.
        return None
    return (
        f"{share:.1%} of the {of_what} are <unk>, which makes perplexity and bits too optimistic:"
        " <unk> is easier to predict than the symbols that it replaces"
    )


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
    progress: ReadingProgress | None = None,
) -> Evaluation:
    """Predict ids[1:] from ids[:-1] and return the total surprisal, summed in float64.

    By default, the text is one stream, and the state is carried from its first token to its last.
    With `window`, the text is cut into windows of that many inputs (the last can be shorter), each
    read from the zero state. With `num_streams`, the text is cut into that many parts of nearly
    equal length that are read in parallel, each from the zero state. This is a fast estimate of the
    default.

    Args:
        model: the model to evaluate.
        ids: (N,) integers of any type, possibly memory-mapped; converted chunk by chunk.
        num_chars: number of characters that ids[1:] complete, for bits per character.
        num_bytes: number of UTF-8 bytes of ids[1:], for bits per byte.
        unknown_id: the id of <unk>, for `num_unknown`.
        window: number of inputs in a window, or None to carry the state.
        num_streams: number of streams that are read in parallel.
        chunk: maximum number of steps in one call of the model. It affects memory and speed, but
            not the result.
        max_tokens: predict only this many tokens, counted from the start. `num_chars` and
            `num_bytes` are then reduced in proportion.
        processes: the processes that share the streams or windows. All of them return the total.
        progress: called after each chunk with the number of predicted tokens so far and in total.

    Raises:
        SourceError: there are fewer than 2 ids, so there is nothing to predict.
        ConfigError: a size is less than 1, or both `window` and `num_streams` are given.
        NonFiniteError: the logits are NaN or infinite.
    """
    _check(window=window, num_streams=num_streams, chunk=chunk, max_tokens=max_tokens)
    array = as_id_array(ids)
    available = len(array) - 1
    if available < 1:
        raise SourceError(
            f"the text has {len(array)} tokens; evaluation needs at least 2, because the first"
            " token is not predicted"
        )
    total = available if max_tokens is None else min(available, max_tokens)
    rows_at_once = num_streams if window is None else WINDOWS_PER_BATCH
    starts, lengths = _windows(total, window) if window else _streams(total, num_streams)
    own = processes.share(len(starts))
    starts, lengths = starts[own], lengths[own]
    nats, num_unknown, num_read = 0.0, 0, 0
    for first in range(0, len(starts), rows_at_once):
        batch = slice(first, first + rows_at_once)
        for targets, surprisal in read_nats(
            model, array, starts[batch], lengths[batch], chunk=chunk
        ):
            nats += float(surprisal.sum())
            num_read += targets.size
            if progress is not None:
                progress(num_read, sum(lengths))
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
    progress: ReadingProgress | None = None,
) -> Evaluation:
    """Evaluate a document, with exact counts of the predicted characters and bytes.

    With character tokens, `num_chars` is len(text) - 1. See `evaluate` for the arguments.

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
        progress=progress,
    )
    num_chars, num_bytes = document.extent(result.num_tokens)
    return dataclasses.replace(result, num_chars=num_chars, num_bytes=num_bytes)


def _check(*, window: int | None = None, num_streams: int = 1, **sizes: int | None) -> None:
    for name, size in {"window": window, "num_streams": num_streams, **sizes}.items():
        if size is not None and size < 1:
            raise ConfigError(f"{name} must be at least 1, not {size}")
    if window is not None and num_streams > 1:
        raise ConfigError("window and num_streams cannot be combined; choose one")


def _windows(total: int, window: int) -> tuple[Sequence[int], list[int]]:
    starts = range(0, total, window)
    return starts, [min(window, total - start) for start in starts]


def _streams(total: int, num_streams: int) -> tuple[list[int], list[int]]:
    """Return starts and lengths of contiguous parts, longest first; they differ by at most one."""
    count = min(num_streams, total)
    short, longer = divmod(total, count)
    lengths = [short + (row < longer) for row in range(count)]
    return list(accumulate(lengths, initial=0))[:-1], lengths


def _in_proportion(count: int | None, part: int, whole: int) -> int | None:
    return count if count is None or part == whole else max(1, round(count * part / whole))
