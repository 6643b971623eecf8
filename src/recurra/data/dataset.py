"""`TokenDataset`: the token ids of a run, split into training and validation part."""

from __future__ import annotations

from dataclasses import dataclass

from recurra.data.batches import Ids
from recurra.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenDataset:
    """A text as token ids, split into training and validation part.

    Attributes:
        train: (N,) integers, the ids of the training part.
        val: (M,) integers, the ids of the validation part. M can be 0.
        num_val_chars: number of characters of the validation part without its first token, which
            is not predicted.
        num_val_bytes: number of UTF-8 bytes of the same part.
        vocabulary: the vocabulary of the ids.
    """

    train: Ids
    val: Ids
    num_val_chars: int
    num_val_bytes: int
    vocabulary: Vocabulary
