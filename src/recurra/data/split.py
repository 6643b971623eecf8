"""Check whether the validation part of a text is of the same kind as its training part.

The validation part is the end of the text. In a sorted list, or a book with an index, it differs
from the rest, and the validation loss says little about the model.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from recurra.data.token_file import TokenFile
from recurra.text.vocabulary import Vocabulary

MIN_VALIDATION, MAX_TOKENS = 1000, 2**26
"""Numbers of tokens; smaller validation parts and larger texts are not compared."""
MAX_COMPARED = 100
"""Number of frequent tokens that are compared one by one; all others count as one token. The
frequencies of rare words differ between any two parts of a text."""
NUM_BLOCKS = 100
"""Number of blocks of the text, from which the typical difference of two parts is measured."""
MAX_RATIO, MAX_EXCESS_NATS = 2.0, 0.03
"""The validation part is not representative if its divergence exceeds the typical one by this
factor and this difference. With every kind of tokens, the corpora of the catalogue stay below these
limits, and another language or another book at the end exceeds them by far."""
MIN_LINES, MAX_LINE_CHARS, MIN_SORTED = 50, 60, 0.9
"""A list is sorted if it has enough lines that are short (in the median), and this fraction of them
follows the previous line in alphabetical order."""
_SAMPLE_TOKENS = 2**16


def describe_split(tokens: TokenFile, vocabulary: Vocabulary) -> str | None:
    """Return a note if the validation part is not representative of the text.

    Args:
        tokens: the token file.
        vocabulary: its vocabulary.
    """
    if len(tokens.val) < MIN_VALIDATION or tokens.num_tokens > MAX_TOKENS:
        return None
    if is_sorted(vocabulary.decode(tokens.train[:_SAMPLE_TOKENS])):
        return (
            "note: the lines are in alphabetical order, so the end of the text, which is held out"
            " for validation, differs from the rest; if the lines are independent, specify"
            " --shuffle-lines"
        )
    found = divergence(tokens.train, tokens.val, len(vocabulary))
    typical = typical_divergence(tokens.ids, len(vocabulary))
    if found <= MAX_RATIO * max(typical, 0.0) + MAX_EXCESS_NATS:
        return None
    return (
        "note: the end of the text, which is held out for validation, has a different distribution"
        f" of tokens than the rest: its frequencies diverge by {found:.2f} nats, and those of other"
        f" parts by {max(typical, 0.0):.2f}; remove an index or a licence at the end, or, if the"
        " lines are independent, specify --shuffle-lines"
    )


def is_sorted(text: str) -> bool:
    """Return whether a text is a list of short lines in alphabetical order."""
    lines = [line.strip().casefold() for line in text.split("\n")[:-1] if line.strip()]
    if len(lines) < MIN_LINES or np.median([len(line) for line in lines]) > MAX_LINE_CHARS:
        return False
    in_order = sum(before <= after for before, after in itertools.pairwise(lines))
    # Repetitions of one line are in order, but not a list.
    return in_order >= MIN_SORTED * (len(lines) - 1) and len(set(lines)) > len(lines) // 2


def divergence(train: npt.ArrayLike, other: npt.ArrayLike, vocab_size: int) -> float:
    """Return the Kullback-Leibler divergence of token frequencies from those of a training part.

    The counts of the training part are smoothed by adding 0.5 (Krichevsky and Trofimov, 1981). The
    bias (m - 1) / 2N for m different tokens among N is subtracted (Miller, 1955), so that the
    result is about 0 for a sample from the same distribution.

    Args:
        train: ids of the training part.
        other: ids of another part.
        vocab_size: number of tokens in the vocabulary.

    Returns:
        The divergence in nats per token.
    """
    counts = np.bincount(np.asarray(train), minlength=vocab_size)
    found = np.bincount(np.asarray(other), minlength=vocab_size)
    rare = np.argsort(-counts, kind="stable")[MAX_COMPARED:]
    counts = np.append(np.delete(counts, rare), counts[rare].sum())
    found = np.append(np.delete(found, rare), found[rare].sum())
    occurs = found > 0
    shares = found[occurs] / found.sum()
    nats = float(
        shares @ np.log(shares * (counts.sum() + 0.5 * len(counts)) / (counts[occurs] + 0.5))
    )
    return nats - (int(np.count_nonzero(occurs)) - 1) / (2 * int(found.sum()))


def typical_divergence(ids: npt.NDArray[np.integer], vocab_size: int) -> float:
    """Return the divergence of every tenth block of a text from its other blocks."""
    blocks = np.array_split(np.asarray(ids), NUM_BLOCKS)
    others = [block for number, block in enumerate(blocks) if number % 10 != 9]
    return divergence(np.concatenate(others), np.concatenate(blocks[9::10]), vocab_size)
