"""The book's batches: random and sequential windows of a list of ids.

Section 8.3 (X and Y int64, a random start in every epoch, drawn from Python's `random` as in the
book, so the same `random.seed` gives the same batches) and the v1 iterators (float32, the start
fixed at 0). Knows nothing of text. The iterators of recurra's own trainer are in
`recurra.data.batches`; these exist because the learner's results depend on the book's ones.

Shapes: X and Y are (batch_size, num_steps), and Y is X one position later in the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from recurra.d2l.text import Vocab, load_corpus_time_machine
from recurra.errors import ConfigError

Ids = Sequence[int] | Tensor
Batches = Iterator[tuple[Tensor, Tensor]]


def _as_tensor(corpus: Ids, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    return torch.as_tensor(corpus, dtype=dtype, device=device)


def _require_sizes(batch_size: int, num_steps: int) -> None:
    if batch_size < 1 or num_steps < 1:
        raise ConfigError(
            f"batch_size ({batch_size}) and num_steps ({num_steps}) must be at least 1"
        )


def _shuffled_windows(ids: Tensor, batch_size: int, num_steps: int) -> Batches:
    num_windows = (len(ids) - 1) // num_steps
    starts = list(range(0, num_windows * num_steps, num_steps))
    random.shuffle(starts)
    steps = torch.arange(num_steps, device=ids.device)
    for first in range(0, num_windows // batch_size * batch_size, batch_size):
        rows = torch.tensor(starts[first : first + batch_size], device=ids.device)
        positions = rows[:, None] + steps
        yield ids[positions], ids[positions + 1]


def seq_data_iter_random(corpus: Ids, batch_size: int, num_steps: int) -> Batches:
    """Windows in random order: those of one batch are not neighbours of those of the next.

    Skips 0 to num_steps - 1 tokens at the start, then gives each complete window once, as far as
    they fill whole batches: ((len - skipped - 1) // num_steps) // batch_size batches.
    """
    _require_sizes(batch_size, num_steps)
    skipped = random.randint(0, num_steps - 1)
    yield from _shuffled_windows(_as_tensor(corpus, torch.int64)[skipped:], batch_size, num_steps)


def seq_data_iter_sequential(corpus: Ids, batch_size: int, num_steps: int) -> Batches:
    """Each row of a batch continues in the same row of the next batch.

    Skips 0 to num_steps tokens at the start (both included, as in the book) and cuts the rest
    into batch_size rows of ((len - skipped - 1) // batch_size) tokens.
    """
    _require_sizes(batch_size, num_steps)
    skipped = random.randint(0, num_steps)
    ids = _as_tensor(corpus, torch.int64)[skipped:]
    row_length = max(len(ids) - 1, 0) // batch_size
    used = row_length * batch_size
    inputs = ids[:used].reshape(batch_size, row_length)
    targets = ids[1 : used + 1].reshape(batch_size, row_length)
    for i in range(0, row_length // num_steps * num_steps, num_steps):
        yield inputs[:, i : i + num_steps], targets[:, i : i + num_steps]


class SeqDataLoader:
    """Batches of The Time Machine; every `for` over it is one epoch with a new random start.

    Public: `corpus` (list of ids), `vocab`, `batch_size`, `num_steps`, `data_iter_fn`.
    """

    def __init__(
        self, batch_size: int, num_steps: int, use_random_iter: bool, max_tokens: int
    ) -> None:
        _require_sizes(batch_size, num_steps)
        self.data_iter_fn = seq_data_iter_random if use_random_iter else seq_data_iter_sequential
        self.corpus, self.vocab = load_corpus_time_machine(max_tokens)
        self.batch_size, self.num_steps = batch_size, num_steps

    def __iter__(self) -> Batches:
        return self.data_iter_fn(self.corpus, self.batch_size, self.num_steps)


def load_data_time_machine(
    batch_size: int, num_steps: int, use_random_iter: bool = False, max_tokens: int = 10000
) -> tuple[SeqDataLoader, Vocab]:
    """The data loader and the vocabulary (28 entries) of The Time Machine.

    Raises:
        CorpusError: the text is neither on this machine nor reachable.
    """
    data_iter = SeqDataLoader(batch_size, num_steps, use_random_iter, max_tokens)
    return data_iter, data_iter.vocab


def data_iter_random(
    corpus_indices: Ids,
    batch_size: int,
    num_steps: int,
    device: torch.device | str | None = None,
) -> Batches:
    """v1: windows in random order, float32, ((len - 1) // num_steps) // batch_size batches."""
    _require_sizes(batch_size, num_steps)
    yield from _shuffled_windows(
        _as_tensor(corpus_indices, torch.float32, device), batch_size, num_steps
    )


def data_iter_consecutive(
    corpus_indices: Ids,
    batch_size: int,
    num_steps: int,
    device: torch.device | str | None = None,
) -> Batches:
    """v1: neighbouring windows, float32, (len // batch_size - 1) // num_steps batches."""
    _require_sizes(batch_size, num_steps)
    ids = _as_tensor(corpus_indices, torch.float32, device)
    row_length = len(ids) // batch_size
    rows = ids[: row_length * batch_size].reshape(batch_size, row_length)
    for i in range(0, (row_length - 1) // num_steps * num_steps, num_steps):
        yield rows[:, i : i + num_steps], rows[:, i + 1 : i + num_steps + 1]


def load_array(
    data_arrays: Sequence[Tensor], batch_size: int, is_train: bool = True
) -> DataLoader[tuple[Tensor, ...]]:
    """A torch DataLoader over tensors of equal length, shuffled when `is_train` (section 8.1)."""
    return DataLoader(TensorDataset(*data_arrays), batch_size, shuffle=is_train)
