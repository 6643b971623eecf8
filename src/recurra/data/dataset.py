"""`TokenDataset`: the token ids of a run, split into training and validation part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recurra.data.batches import Ids
from recurra.data.provisional import CHUNK_IDS
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

    def unknown_share(self) -> tuple[float, str]:
        """Return the fraction of <unk> among the tokens that the reports are about, and their name.

        These are the validation tokens, or the training tokens if there is no validation part.
        """
        ids, name = (self.val, "validation") if len(self.val) else (self.train, "training")
        unknown_id, count = self.vocabulary.unknown_id, 0
        # The ids can be a memory map that is larger than memory.
        for start in range(0, 0 if unknown_id is None else len(ids), CHUNK_IDS):
            count += int(np.count_nonzero(ids[start : start + CHUNK_IDS] == unknown_id))
        return count / len(ids), f"{name} tokens"
