"""The tokens of a run: a training and a validation part with their vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from recurra.data.batches import Ids
from recurra.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenDataset:
    """A text as token ids, divided for training.

    Attributes:
        train: ids of the training part, (N,).
        val: ids of the validation part, (M,); may be empty.
        num_val_chars, num_val_bytes: characters and UTF-8 bytes of the validation part without its
            first token, which is not predicted.
        vocabulary: maps ids to text.
    """

    train: Ids
    val: Ids
    num_val_chars: int
    num_val_bytes: int
    vocabulary: Vocabulary
