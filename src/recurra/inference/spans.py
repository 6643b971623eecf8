"""Map tokens to the bytes and characters that they cover.

A token covers a whole number of UTF-8 bytes: one character, part of one (byte tokens), or several
(words, BPE). Bytes are therefore the common measure, and bits per character and per byte can be
compared between models that cut the text differently.

Knows no model: it works on lengths.
"""

from __future__ import annotations

import numpy as np

from recurra.inference.reading import FloatArray, IdArray


def character_sizes(text: str) -> IdArray:
    """UTF-8 bytes of each character of the text: (len(text),), each between 1 and 4."""
    code = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    # Four comparisons beat encoding the characters one by one by two orders of magnitude.
    sizes: IdArray = (1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)).astype(np.int64)
    return sizes


def characters_completed(sizes: IdArray, first_byte: int, end_byte: int) -> int:
    """How many characters have their last byte in [first_byte, end_byte).

    `sizes` are the characters' bytes, (characters,). Counting a character where it ends makes the
    counts of neighbouring ranges add up, even when a token stops in the middle of a character.
    """
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [first_byte, end_byte], side="right")
    return int(last - first)


def spread_over_characters(bits: FloatArray, token_sizes: IdArray, sizes: IdArray) -> FloatArray:
    """Bits of tokens as bits of characters, evenly over the bytes that each token covers.

    Shapes: bits and token_sizes (tokens,), sizes (characters,); both sizes in bytes, with the same
    sum. The result (characters,) has the sum of `bits`, to rounding. Where a token is a character
    its bits are returned unchanged.
    """
    assert int(token_sizes.sum()) == int(sizes.sum()), "tokens and characters cover the same bytes"
    assert bool((token_sizes > 0).all()), "a token that covers nothing would lose its bits"
    if np.array_equal(token_sizes, sizes):
        return bits
    per_byte = np.repeat(bits / token_sizes, token_sizes)
    first_bytes = np.cumsum(sizes) - sizes
    spread: FloatArray = np.add.reduceat(per_byte, first_bytes)
    return spread
