"""`DataModule`, the base class of data, and `TimeMachine` with its vocabulary (chapter 9)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from recurra import d2l
from recurra.d2l.batches import require_sizes
from recurra.d2l.english_1_0.hyperparameters import HyperParameters
from recurra.d2l.text import Vocab
from recurra.errors import SourceError


class DataModule(HyperParameters):
    """Base class of data: a subclass defines `get_dataloader` and the attribute `batch_size`.

    Args:
        root: directory of downloads in the book; ignored, see `d2l.download`.
        num_workers: number of processes that load data, for subclasses that use it.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> class Numbers(d2l.DataModule):
        ...     def __init__(self, batch_size):
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...         self.X = torch.arange(10.0)
        ...     def get_dataloader(self, train):
        ...         indices = slice(0, 8) if train else slice(8, 10)
        ...         return self.get_tensorloader([self.X], train, indices)
        >>> [batch[0].tolist() for batch in Numbers(batch_size=2).val_dataloader()]
        [[8.0, 9.0]]
    """

    root: str
    num_workers: int
    batch_size: int

    def __init__(self, root: str = "../data", num_workers: int = 4) -> None:
        self.save_hyperparameters()

    def get_dataloader(self, train: bool) -> Any:
        """Return the training or the validation batches.

        Raises:
            NotImplementedError: always; subclasses define the method, as in the book.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define get_dataloader(train)")

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return self.get_dataloader(train=True)

    def val_dataloader(self) -> Any:
        """Return the validation batches."""
        return self.get_dataloader(train=False)

    def get_tensorloader(
        self, tensors: Sequence[Tensor], train: bool, indices: slice = slice(0, None)
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Return a DataLoader over `indices` of tensors of equal length, shuffled if `train`.

        The batches are those of `DataLoader(dataset, batch_size, shuffle=train)`. Each batch is
        read with one index operation instead of one per example.
        """
        dataset = TensorDataset(*(tensor[indices] for tensor in tensors))
        order = RandomSampler(dataset) if train else SequentialSampler(dataset)
        batches = BatchSampler(order, self.batch_size, drop_last=False)
        return DataLoader(dataset, batch_size=None, sampler=batches)


class SortedVocab(Vocab):
    """The `Vocab` of edition 1.0, whose ids are in the order of the sorted tokens (section 9.2).

    `TimeMachine` uses it. `d2l.Vocab` is the vocabulary of the earlier editions, whose ids are in
    the order of descending frequency. `<unk>` is one of the sorted tokens.

    Attributes:
        idx_to_token: list of the tokens by id.
        token_to_idx: dictionary of the ids by token.

    Examples:
        >>> from recurra import d2l
        >>> vocab = d2l.SortedVocab(["the", "time", "the"])
        >>> vocab[["the", "time", "machine"]], vocab.unk
        ([1, 2, 0], 0)
        >>> vocab.token_freqs
        [('the', 2), ('time', 1)]
    """

    def __init__(
        self,
        tokens: Sequence[Any] | None = None,
        min_freq: int = 0,
        reserved_tokens: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(tokens, min_freq, reserved_tokens)
        self.idx_to_token.sort()
        self.token_to_idx = {token: i for i, token in enumerate(self.idx_to_token)}

    @property
    def unk(self) -> int:
        """The id of unknown tokens."""
        return self.token_to_idx["<unk>"]


class TimeMachine(DataModule):
    """Windows of The Time Machine: X and Y are (windows, num_steps), and Y is one position later.

    Window i starts at character i. The text has lower-case letters and spaces only, 28 entries in
    the vocabulary. Training uses the first `num_train` windows, and validation the following
    `num_val`.

    Args:
        batch_size: number of windows in a batch.
        num_steps: number of characters in a window.
        num_train: number of windows for training.
        num_val: number of windows for validation.

    Attributes:
        vocab: the vocabulary.
        X: the inputs of all windows. They share their memory, so do not write to them.
        Y: the targets of all windows, in the same memory.

    Raises:
        ConfigError: `batch_size` or `num_steps` is less than 1.
        CorpusError: the text is not available locally and cannot be downloaded.
        SourceError: the text that `_download` returns has no window.

    Examples:
        >>> from recurra import d2l
        >>> data = d2l.TimeMachine(batch_size=2, num_steps=10)
        >>> X, Y = next(iter(data.val_dataloader()))
        >>> X.shape, bool((X[:, 1:] == Y[:, :-1]).all()), len(data.vocab)
        (torch.Size([2, 10]), True, 28)
    """

    num_steps: int
    num_train: int
    num_val: int

    def __init__(
        self, batch_size: int, num_steps: int, num_train: int = 10000, num_val: int = 5000
    ) -> None:
        require_sizes(batch_size, num_steps)
        super().__init__()
        self.save_hyperparameters()
        corpus, self.vocab = self.build(self._download())
        if len(corpus) <= num_steps:
            raise SourceError(
                f"the text has {len(corpus)} tokens, but a window of {num_steps} steps needs"
                f" {num_steps + 1}"
            )
        windows = torch.tensor(corpus).unfold(0, num_steps + 1, 1)
        self.X, self.Y = windows[:, :-1], windows[:, 1:]

    def _download(self) -> str:
        """Return the text."""
        path = d2l.download(d2l.DATA_URL + "timemachine.txt", self.root)
        with open(path, encoding="utf-8") as file:
            return file.read()

    def _preprocess(self, text: str) -> str:
        """Return the text in lower case, with one space for each run of other characters."""
        return re.sub("[^A-Za-z]+", " ", text).lower()

    def _tokenize(self, text: str) -> list[str]:
        """Return the characters of the text."""
        return list(text)

    def build(self, raw_text: str, vocab: Any = None) -> tuple[list[int], Any]:
        """Return the ids of the tokens of a text, and the vocabulary, which is built if None."""
        tokens = self._tokenize(self._preprocess(raw_text))
        if vocab is None:
            # A replaced d2l.Vocab has effect, as in the book.
            vocab = (SortedVocab if d2l.Vocab is Vocab else d2l.Vocab)(tokens)
        return [vocab[token] for token in tokens], vocab

    def get_dataloader(self, train: bool) -> Any:
        """Return the training or the validation batches (X, Y), both (batch, num_steps) int64."""
        end = self.num_train + self.num_val
        indices = slice(0, self.num_train) if train else slice(self.num_train, end)
        return self.get_tensorloader([self.X, self.Y], train, indices)
