"""The book's text functions: reading both corpora, tokenization, and `Vocab`.

Follows sections 8.2 and 8.3 of Dive into Deep Learning (first edition) and the lyrics section of
the Chinese v1. Knows no torch and no network: files are found by `recurra.text.catalogue`.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

from recurra.errors import ConfigError
from recurra.text import catalogue

DATA_URL = "http://d2l-data.s3-accelerate.amazonaws.com/"
DATA_HUB: dict[str, tuple[str, str]] = {}
# Notebooks write into DATA_HUB before they download. The assignment has to work, but recurra's
# catalogue knows addresses and checksums itself, so what is written there is not read.

LYRICS_LENGTH = 10_000


def download(name: str) -> str:
    """Path of a corpus by the book's name (`time_machine`) or by recurra's (`time-machine`).

    Raises:
        CorpusError: the corpus is unknown, or neither on this machine nor reachable.
    """
    return str(catalogue.locate(name.replace("_", "-")))


def read_time_machine() -> list[str]:
    """The lines of The Time Machine: letters only, lower case, everything else one space."""
    with catalogue.locate("time-machine").open(encoding="utf-8") as file:
        return [re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in file]


def tokenize(lines: Iterable[str], token: str = "word") -> list[list[str]]:
    """Split each line into words (at white space) or characters.

    Raises:
        ConfigError: `token` is neither "word" nor "char".
    """
    if token == "word":
        return [line.split() for line in lines]
    if token == "char":
        return [list(line) for line in lines]
    raise ConfigError(f"token is {token!r}; it must be 'word' or 'char'")


def count_corpus(tokens: Sequence[Any]) -> collections.Counter[Any]:
    """How often each token occurs in a list of tokens, or in a list of lists of tokens."""
    # A tuple is a token itself: the bigrams and trigrams of section 8.3.
    if tokens and isinstance(tokens[0], list):
        return collections.Counter(token for line in tokens for token in line)
    return collections.Counter(tokens)


class Vocab:
    """The book's table between tokens and ids (section 8.2).

    `<unk>` is 0, the reserved tokens follow, then the tokens from the most to the least frequent
    (equal counts in order of appearance), without those seen fewer than `min_freq` times.
    Public: `idx_to_token` (list), `token_to_idx` (dict), `token_freqs` (pairs), `unk` (0).
    """

    def __init__(
        self,
        tokens: Sequence[Any] | None = None,
        min_freq: int = 0,
        reserved_tokens: Sequence[Any] | None = None,
    ) -> None:
        self._token_freqs = count_corpus(tokens or []).most_common()
        kept = [token for token, count in self._token_freqs if count >= min_freq]
        # A dict keeps the first of equal keys: a token that is also reserved has one id.
        self.idx_to_token: list[Any] = list(
            dict.fromkeys(["<unk>", *(reserved_tokens or []), *kept])
        )
        self.token_to_idx: dict[Any, int] = {t: i for i, t in enumerate(self.idx_to_token)}

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __getitem__(self, tokens: Any) -> Any:
        """The id of one token (0 when unknown), or a list of ids for a list of tokens."""
        if isinstance(tokens, (list, tuple)):
            return [self[token] for token in tokens]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices: Any) -> Any:
        """The token of one id, or the list of tokens for a list, array or 1-D tensor of ids."""
        if getattr(indices, "ndim", None) == 0 or not hasattr(indices, "__len__"):
            return self.idx_to_token[int(indices)]
        return [self.to_tokens(index) for index in indices]

    @property
    def unk(self) -> int:
        """The id of every unknown token."""
        return 0

    @property
    def token_freqs(self) -> list[tuple[Any, int]]:
        """Pairs (token, count), the most frequent first."""
        return self._token_freqs


def load_corpus_time_machine(max_tokens: int = -1) -> tuple[list[int], Vocab]:
    """Character ids of The Time Machine and their vocabulary (28 entries).

    The vocabulary comes from the whole book; `max_tokens`, when positive, cuts only the ids.
    """
    tokens = tokenize(read_time_machine(), "char")
    vocab = Vocab(tokens)
    corpus: list[int] = [vocab[token] for line in tokens for token in line]
    return (corpus[:max_tokens] if max_tokens > 0 else corpus), vocab


def load_data_jay_lyrics() -> tuple[list[int], dict[str, int], list[str], int]:
    """The lyrics corpus of v1: (corpus_indices, char_to_idx, idx_to_char, vocab_size).

    Line ends become spaces, then the first 10,000 characters are kept: 1,027 different ones. Ids
    follow the order of the code points, so they are the same in every run (in v1 they are not).
    """
    text = catalogue.locate("jaychou-lyrics").read_bytes().decode("utf-8")
    text = text.replace("\n", " ").replace("\r", " ")[:LYRICS_LENGTH]
    idx_to_char = sorted(set(text))
    char_to_idx = {char: i for i, char in enumerate(idx_to_char)}
    return [char_to_idx[char] for char in text], char_to_idx, idx_to_char, len(idx_to_char)
