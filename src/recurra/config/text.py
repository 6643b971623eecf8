"""Configuration of the conversion of text to ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recurra.config.checks import require, require_choices, require_types

TokenKind = Literal["char", "byte", "word", "bpe"]
UnknownRule = Literal["error", "replace"]

MAX_VOCABULARY = 2**20


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a text becomes ids."""

    tokens: TokenKind = "char"
    """The unit of a token: a character, a byte, a word with the space before it, or a BPE piece."""

    vocab_size: int | None = None
    """Largest vocabulary to build, most frequent tokens first (bpe: 512 when not given)."""

    min_freq: int = 1
    """Tokens seen fewer times than this in the training part become <unk>."""

    letters_only: bool = False
    """The book's cleaning: every run of other characters than A-Z becomes one space, lower case,
    lines stripped and joined without a separator."""

    max_tokens: int | None = None
    """Use only this many tokens from the start of the text (bpe: characters)."""

    val_fraction: float = 0.1
    """Share of the text, taken from its end, that is kept for validation and never trained on."""

    encoding: str = "utf-8"
    """Encoding of the source files."""

    newlines: Literal["unify", "keep"] = "unify"
    """unify turns \\r\\n and lone \\r into \\n; keep leaves them. Byte tokens always keep."""

    separator: str = "\n"
    """What stands between two files when the source is several."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choices(self, tokens=TokenKind, newlines=Literal["unify", "keep"])
        require(
            self.vocab_size is None or 2 <= self.vocab_size <= MAX_VOCABULARY,
            f"vocab_size must lie between 2 and {MAX_VOCABULARY}",
        )
        require(self.min_freq >= 1, "min_freq must be at least 1")
        require(self.max_tokens is None or self.max_tokens >= 2, "max_tokens must be at least 2")
        require(0.0 <= self.val_fraction < 1.0, "val_fraction must be at least 0 and below 1")
        require(
            not (self.letters_only and self.tokens == "byte"),
            "letters_only cleans text, and byte tokens are not text; choose one of the two",
        )
