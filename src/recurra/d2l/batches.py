"""Batches of the book: random and sequential windows of a list of ids.

The iterators of section 8.3 give int64 tensors and start at a random offset in each epoch. The
offset is drawn from Python's `random`, so that the same `random.seed` gives the batches of the
book. The iterators of v1 give float32 tensors and start at 0. The trainer of recurra uses
`recurra.data.batches` instead.

Shapes: X and Y are (batch_size, num_steps), and Y is X one position later in the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from recurra import d2l
from recurra.d2l.text import Vocab
from recurra.errors import ConfigError

Ids = Sequence[int] | Tensor
Batches = Iterator[tuple[Tensor, Tensor]]


def _as_tensor(corpus: Ids, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    return torch.as_tensor(corpus, dtype=dtype, device=device)


def require_sizes(batch_size: int, num_steps: int) -> None:
    """Raise a ConfigError if a size is less than 1."""
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
    """Yield batches of windows in random order.

    Skips 0 to num_steps - 1 tokens at the start. Each complete window is used at most once, and the
    last incomplete batch is dropped: ((len - skipped - 1) // num_steps) // batch_size batches.

    Yields:
        (X, Y), both (batch_size, num_steps) int64.

    Raises:
        ConfigError: `batch_size` or `num_steps` is less than 1.

    Examples:
        >>> from recurra import d2l
        >>> X, Y = next(d2l.seq_data_iter_random(list(range(35)), batch_size=2, num_steps=5))
        >>> X.shape, bool((Y == X + 1).all())
        (torch.Size([2, 5]), True)
    """
    require_sizes(batch_size, num_steps)
    skipped = random.randint(0, num_steps - 1)
    yield from _shuffled_windows(_as_tensor(corpus, torch.int64)[skipped:], batch_size, num_steps)


def seq_data_iter_sequential(corpus: Ids, batch_size: int, num_steps: int) -> Batches:
    """Yield batches of adjacent windows: each row continues in the same row of the next batch.

    Skips 0 to num_steps tokens at the start (inclusive, as in the book) and divides the rest into
    batch_size rows of (len - skipped - 1) // batch_size tokens.

    Yields:
        (X, Y), both (batch_size, num_steps) int64.

    Raises:
        ConfigError: `batch_size` or `num_steps` is less than 1.

    Examples:
        >>> from recurra import d2l
        >>> batches = list(d2l.seq_data_iter_sequential(list(range(35)), batch_size=2, num_steps=5))
        >>> bool((batches[1][0] == batches[0][0] + 5).all())
        True
    """
    require_sizes(batch_size, num_steps)
    skipped = random.randint(0, num_steps)
    ids = _as_tensor(corpus, torch.int64)[skipped:]
    row_length = max(len(ids) - 1, 0) // batch_size
    used = row_length * batch_size
    inputs = ids[:used].reshape(batch_size, row_length)
    targets = ids[1 : used + 1].reshape(batch_size, row_length)
    for i in range(0, row_length // num_steps * num_steps, num_steps):
        yield inputs[:, i : i + num_steps], targets[:, i : i + num_steps]


class SeqDataLoader:
    """Iterable over batches of The Time Machine; each iteration is one epoch with a random offset.

    Attributes:
        corpus: list of token ids.
        vocab: the `Vocab` of the corpus.
        batch_size: number of rows in a batch.
        num_steps: number of tokens in a row.
        data_iter_fn: `seq_data_iter_random` or `seq_data_iter_sequential`.

    Examples:
        >>> from recurra import d2l
        >>> loader = d2l.SeqDataLoader(32, 35, use_random_iter=False, max_tokens=10000)
        >>> X, Y = next(iter(loader))
        >>> X.shape, len(loader.vocab)
        (torch.Size([32, 35]), 28)
    """

    def __init__(
        self, batch_size: int, num_steps: int, use_random_iter: bool, max_tokens: int
    ) -> None:
        require_sizes(batch_size, num_steps)
        self.data_iter_fn = (
            d2l.seq_data_iter_random if use_random_iter else d2l.seq_data_iter_sequential
        )
        self.corpus, self.vocab = d2l.load_corpus_time_machine(max_tokens)
        self.batch_size, self.num_steps = batch_size, num_steps

    def __iter__(self) -> Batches:
        return self.data_iter_fn(self.corpus, self.batch_size, self.num_steps)


def load_data_time_machine(
    batch_size: int, num_steps: int, use_random_iter: bool = False, max_tokens: int = 10000
) -> tuple[SeqDataLoader, Vocab]:
    """Return the data loader and the vocabulary (28 entries) of The Time Machine.

    Raises:
        CorpusError: the text is not available locally and cannot be downloaded.

    Examples:
        >>> from recurra import d2l
        >>> train_iter, vocab = d2l.load_data_time_machine(batch_size=32, num_steps=35)
        >>> [X.shape for X, Y in train_iter][0], len(vocab)
        (torch.Size([32, 35]), 28)
    """
    data_iter = d2l.SeqDataLoader(batch_size, num_steps, use_random_iter, max_tokens)
    return data_iter, data_iter.vocab


def data_iter_random(
    corpus_indices: Ids,
    batch_size: int,
    num_steps: int,
    device: torch.device | str | None = None,
) -> Batches:
    """Yield ((len - 1) // num_steps) // batch_size float32 batches of windows in random order
    (v1).

    Examples:
        >>> from recurra import d2l
        >>> X, Y = next(d2l.data_iter_random(list(range(30)), batch_size=2, num_steps=6))
        >>> X.shape, X.dtype
        (torch.Size([2, 6]), torch.float32)
    """
    require_sizes(batch_size, num_steps)
    yield from _shuffled_windows(
        _as_tensor(corpus_indices, torch.float32, device), batch_size, num_steps
    )


def data_iter_consecutive(
    corpus_indices: Ids,
    batch_size: int,
    num_steps: int,
    device: torch.device | str | None = None,
) -> Batches:
    """Yield (len // batch_size - 1) // num_steps float32 batches of adjacent windows (v1).

    Examples:
        >>> from recurra import d2l
        >>> X, Y = next(d2l.data_iter_consecutive(list(range(30)), batch_size=2, num_steps=6))
        >>> X
        tensor([[ 0.,  1.,  2.,  3.,  4.,  5.],
                [15., 16., 17., 18., 19., 20.]])
    """
    require_sizes(batch_size, num_steps)
    ids = _as_tensor(corpus_indices, torch.float32, device)
    row_length = len(ids) // batch_size
    rows = ids[: row_length * batch_size].reshape(batch_size, row_length)
    for i in range(0, (row_length - 1) // num_steps * num_steps, num_steps):
        yield rows[:, i : i + num_steps], rows[:, i + 1 : i + num_steps + 1]


def load_array(
    data_arrays: Sequence[Tensor], batch_size: int, is_train: bool = True
) -> DataLoader[tuple[Tensor, ...]]:
    """Return a DataLoader over tensors of equal length, shuffled if `is_train` (section 8.1).

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> data_iter = d2l.load_array((torch.zeros(10, 4), torch.zeros(10, 1)), batch_size=5)
        >>> X, y = next(iter(data_iter))
        >>> X.shape, y.shape
        (torch.Size([5, 4]), torch.Size([5, 1]))
    """
    return DataLoader(TensorDataset(*data_arrays), batch_size, shuffle=is_train)
