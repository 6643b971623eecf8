"""`TokenDataset`: the token ids of a run, split into training and validation part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recurra.data.batches import Ids
from recurra.text.vocabulary import Vocabulary

MAX_COUNTED = 2**24
"""Maximum number of tokens from which frequencies are counted."""


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

    def frequency_nats(self) -> float:
        """Return the loss in nats of predicting each token by its frequency in the training part.

        The frequencies are smoothed by adding one to each count. The loss is that of the validation
        part, or of the training part if there is none. Of each part, at most `MAX_COUNTED` tokens
        are read.
        """
        size = len(self.vocabulary)
        counts = np.bincount(self.train[:MAX_COUNTED], minlength=size)
        held_out = self.val if len(self.val) >= 2 else self.train
        predicted = np.bincount(held_out[:MAX_COUNTED], minlength=size)
        log_shares = np.log((counts + 1) / (counts.sum() + size))
        return float(-(predicted @ log_shares) / predicted.sum())
