"""Convert characters to code points, to UTF-8 and to a printable form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recurra.errors import SourceError


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code point of each character, (characters,) uint32, including lone surrogates."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def utf8(text: str) -> bytes:
    """Return a text in UTF-8.

    Raises:
        SourceError: if the text contains a lone surrogate, which has no UTF-8 encoding.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"the text contains {text[error.start]!r} at position {error.start}, a lone surrogate;"
            " it was probably decoded with a wrong encoding"
        ) from error


def printable(text: str) -> str:
    """Return a text with spaces shown as an open box and non-printable characters escaped."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped).replace(" ", "\u2423")


# Line separators and marks that change the direction of the text around them.
_FORMATS = (*range(0x2028, 0x202F), *range(0x2066, 0x206A))
# The Unicode block "Control Pictures" has the first 32 control characters in the same order.
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(
    (*range(0x7F, 0xA0), *_FORMATS), "\ufffd"
)
_ESCAPES = {code: f"\\u{code:04x}" for code in _PICTURES}


def without_controls(text: str, *, but: str = "") -> str:
    """Replace control characters, which could affect a terminal, by visible symbols.

    Line separators (U+2028, U+2029) and marks that embed or override a direction (U+202A to U+202E,
    U+2066 to U+2069) are replaced too. The characters in `but` are not replaced.
    """
    return text.translate({code: c for code, c in _PICTURES.items() if chr(code) not in but})


def escape_controls(text: str) -> str:
    """Replace the characters that `without_controls` replaces by JSON escapes, such as \\u001b."""
    return text.translate(_ESCAPES)


def label_bytes(data: bytes) -> str:
    """Return bytes as by `printable`, or in hexadecimal if they are not valid UTF-8."""
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return "".join(f"\\x{value:02x}" for value in data)
