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


# The Unicode block "Control Pictures" has the first 32 control characters in the same order.
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(127, 160), "\ufffd")


def without_controls(text: str, *, but: str = "") -> str:
    """Replace control characters, which could affect a terminal, by visible symbols.

    The characters in `but` are not replaced.
    """
    return text.translate({code: c for code, c in _PICTURES.items() if chr(code) not in but})


def label_bytes(data: bytes) -> str:
    """Return bytes as by `printable`, or in hexadecimal if they are not valid UTF-8."""
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return "".join(f"\\x{value:02x}" for value in data)
