"""Text functions of the book: reading both corpora, tokenization, and `Vocab`.

They follow sections 8.2 and 8.3 of the editions before 1.0 and the lyrics section of the Chinese
first edition (v1). `recurra.text.catalogue` locates and downloads the files.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

from recurra import d2l
from recurra.errors import ConfigError
from recurra.text import catalogue

DATA_URL = "http://d2l-data.s3-accelerate.amazonaws.com/"
DATA_HUB: dict[str, tuple[str, str]] = {}
# Notebooks assign to DATA_HUB before they download. The entries are ignored, because the catalogue
# has its own URLs and checksums.

LYRICS_LENGTH = 10_000


def download(name: str, folder: str | None = None, sha1_hash: str | None = None) -> str:
    """Return the path of a corpus, downloaded if necessary.

    Args:
        name: the name in the book (`time_machine`) or in recurra (`time-machine`), or the address
            in the book (`d2l.DATA_URL + "timemachine.txt"`).
        folder: part of the signature of the book; ignored. The text is read from the directory
            that `RECURRA_DATA` names, or from the cache.
        sha1_hash: part of the signature of the book; ignored. The catalogue has its own checksums.

    Raises:
        CorpusError: the corpus is unknown, or is not available locally and cannot be downloaded.

    Examples:
        >>> from pathlib import Path
        >>> from recurra import d2l
        >>> Path(d2l.download("time_machine")).name
        'time_machine.txt'
    """
    if "://" in name:
        file_name = name.rpartition("/")[2]
        for corpus in map(catalogue.describe, catalogue.names()):
            if corpus.url is not None and corpus.url.endswith("/" + file_name):
                return str(catalogue.locate(corpus.name))
    return str(catalogue.locate(name.replace("_", "-")))


def read_time_machine() -> list[str]:
    """Return the lines of The Time Machine, reduced to lower-case letters and spaces.

    Each run of other characters than letters becomes one space, and each line is stripped.

    Examples:
        >>> from recurra import d2l
        >>> lines = d2l.read_time_machine()
        >>> len(lines), lines[0]
        (3221, 'the time machine by h g wells')
    """
    with open(d2l.download("time_machine"), encoding="utf-8") as file:
        return [re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in file]


def tokenize(lines: Iterable[str], token: str = "word") -> list[list[str]]:
    """Split each line into words (at whitespace) or characters.

    Raises:
        ConfigError: `token` is neither "word" nor "char".

    Examples:
        >>> from recurra import d2l
        >>> d2l.tokenize(["the time machine", "by h g wells"])
        [['the', 'time', 'machine'], ['by', 'h', 'g', 'wells']]
        >>> d2l.tokenize(["the"], token="char")
        [['t', 'h', 'e']]
    """
    if token == "word":
        return [line.split() for line in lines]
    if token == "char":
        return [list(line) for line in lines]
    raise ConfigError(f"token is {token!r}; it must be 'word' or 'char'")


def count_corpus(tokens: Sequence[Any]) -> collections.Counter[Any]:
    """Count the tokens in a list of tokens or in a list of lists of tokens.

    Examples:
        >>> from recurra import d2l
        >>> d2l.count_corpus([["the", "time"], ["the"]])
        Counter({'the': 2, 'time': 1})
    """
    # A tuple is a single token: a bigram or trigram of section 8.3.
    if tokens and isinstance(tokens[0], list):
        return collections.Counter(token for line in tokens for token in line)
    return collections.Counter(tokens)


class Vocab:
    """Vocabulary of the book (section 8.2).

    The id of `<unk>` is 0. The reserved tokens follow, and then the tokens that occur at least
    `min_freq` times, in order of descending frequency. Tokens with equal frequency stay in the
    order of appearance.

    Attributes:
        idx_to_token: list of the tokens by id.
        token_to_idx: dictionary of the ids by token.

    Examples:
        >>> from recurra import d2l
        >>> vocab = d2l.Vocab(["the", "time", "the"])
        >>> vocab[["the", "time", "machine"]]
        [1, 2, 0]
        >>> vocab.to_tokens([1, 0])
        ['the', '<unk>']
    """

    def __init__(
        self,
        tokens: Sequence[Any] | None = None,
        min_freq: int = 0,
        reserved_tokens: Sequence[Any] | None = None,
    ) -> None:
        counts = d2l.count_corpus(tokens or [])
        self._token_freqs = sorted(counts.items(), key=lambda item: item[1], reverse=True)
        kept = [token for token, count in self._token_freqs if count >= min_freq]
        # dict.fromkeys removes duplicates: a token that is also reserved has a single id.
        self.idx_to_token: list[Any] = list(
            dict.fromkeys(["<unk>", *(reserved_tokens or []), *kept])
        )
        self.token_to_idx: dict[Any, int] = {t: i for i, t in enumerate(self.idx_to_token)}

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __getitem__(self, tokens: Any) -> Any:
        """Return the id of a token (0 if unknown), or a list of ids for a list of tokens."""
        if isinstance(tokens, (list, tuple)):
            return [self[token] for token in tokens]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices: Any) -> Any:
        """Return the token of an id, or a list of tokens for a list, array or 1-D tensor of ids."""
        if getattr(indices, "ndim", None) == 0 or not hasattr(indices, "__len__"):
            return self.idx_to_token[int(indices)]
        return [self.to_tokens(index) for index in indices]

    @property
    def unk(self) -> int:
        """The id of unknown tokens."""
        return 0

    @property
    def token_freqs(self) -> list[tuple[Any, int]]:
        """Pairs (token, count), sorted by descending count."""
        return self._token_freqs


def load_corpus_time_machine(max_tokens: int = -1) -> tuple[list[int], Vocab]:
    """Return the character ids of The Time Machine and their vocabulary (28 entries).

    The vocabulary is built from the whole text. A positive `max_tokens` truncates only the ids.

    Raises:
        CorpusError: the text is not available locally and cannot be downloaded.

    Examples:
        >>> from recurra import d2l
        >>> corpus, vocab = d2l.load_corpus_time_machine()
        >>> len(corpus), len(vocab)
        (170580, 28)
    """
    tokens = d2l.tokenize(d2l.read_time_machine(), "char")
    vocab = d2l.Vocab(tokens)
    corpus: list[int] = [vocab[token] for line in tokens for token in line]
    return (corpus[:max_tokens] if max_tokens > 0 else corpus), vocab


def load_data_jay_lyrics() -> tuple[list[int], dict[str, int], list[str], int]:
    """Return the lyrics corpus of v1 as (corpus_indices, char_to_idx, idx_to_char, vocab_size).

    Line ends become spaces, and the first 10,000 characters are kept, of which 1,027 are distinct.
    Ids are in the order of the code points, so that they are reproducible; in v1, they are not.

    Raises:
        CorpusError: the text is not available locally and cannot be downloaded.

    Examples:
        >>> from recurra import d2l
        >>> corpus_indices, char_to_idx, idx_to_char, vocab_size = d2l.load_data_jay_lyrics()
        >>> len(corpus_indices), vocab_size
        (10000, 1027)
    """
    text = catalogue.locate("jaychou-lyrics").read_bytes().decode("utf-8")
    text = text.replace("\n", " ").replace("\r", " ")[:LYRICS_LENGTH]
    idx_to_char = sorted(set(text))
    char_to_idx = {char: i for i, char in enumerate(idx_to_char)}
    return [char_to_idx[char] for char in text], char_to_idx, idx_to_char, len(idx_to_char)
