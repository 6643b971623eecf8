"""Configuration of the conversion of text to ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recurra.config.checks import require, require_choices, require_types

TokenKind = Literal["char", "byte", "word", "bpe"]
UnknownRule = Literal["error", "replace"]
NewTokens = Literal["add", "replace", "error"]

MAX_VOCABULARY = 2**20


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Decoding, cleaning, tokenization and train/validation split of a text.

    Examples:
        >>> from recurra.config import TextConfig
        >>> TextConfig(tokens="word", min_freq=2).val_fraction
        0.1
    """

    tokens: TokenKind = "char"
    """Token type: character, byte, word (with the preceding space), or byte-pair encoding (BPE;
    requires the bpe extra)."""

    vocab_size: int | None = None
    """Maximum vocabulary size; the most frequent tokens are kept. By default unlimited, except 512
    for bpe."""

    min_freq: int = 1
    """Minimum frequency of a token in the training split; rarer tokens become <unk>."""

    letters_only: bool = False
    """Clean the text as in Dive into Deep Learning: replace each run of characters other than A-Z
    and a-z by a space, convert to lower case, strip each line and join the lines without a
    separator."""

    max_tokens: int | None = None
    """Maximum number of tokens to use, counted from the start of the text (characters for bpe)."""

    val_fraction: float = 0.1
    """Fraction of the text, taken from its end, that is held out for validation."""

    encoding: str = "utf-8"
    """Encoding of the source files."""

    newlines: Literal["unify", "keep"] = "unify"
    """Line endings: unify converts \\r\\n and \\r to \\n; keep leaves them unchanged. Byte tokens
    always keep them."""

    separator: str = "\n"
    r"""Text inserted between two source files. On the command line, backslash escapes such as \n
    are replaced."""

    shuffle_lines: bool = False
    """Shuffle the lines of the text before it is split, for lists in which each line is independent
    of the others. The order is the same in every run."""

    new_tokens: NewTokens = "add"
    """With --from: tokens of the text that the vocabulary of the base run lacks. add extends the
    vocabulary, replace reads them as <unk>, error refuses the text."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choices(
            self,
            tokens=TokenKind,
            newlines=Literal["unify", "keep"],
            new_tokens=NewTokens,
        )
        require(
            self.vocab_size is None or 2 <= self.vocab_size <= MAX_VOCABULARY,
            f"vocab_size must be between 2 and {MAX_VOCABULARY}",
        )
        require(self.min_freq >= 1, "min_freq must be at least 1")
        require(self.max_tokens is None or self.max_tokens >= 2, "max_tokens must be at least 2")
        require(0.0 <= self.val_fraction < 1.0, "val_fraction must be at least 0 and less than 1")
        require(
            not (self.letters_only and self.tokens == "byte"),
            "letters_only cannot be combined with byte tokens; remove one of the two",
        )
