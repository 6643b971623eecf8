"""Characters as code points, as bytes and in printable form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recurra.errors import SourceError


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code point of each character, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def utf8(text: str) -> bytes:
    """The text in UTF-8.

    Raises:
        SourceError: a lone surrogate, which has no UTF-8 form.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"the text holds {text[error.start]!r} at position {error.start}: a lone surrogate,"
            " half a character of a broken decoding"
        ) from error


def printable(text: str) -> str:
    """Text with spaces drawn as an open box and all else that does not print escaped."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped).replace(" ", "\u2423")


# Unicode has pictures of the first control characters, in their order.
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(127, 160), "\ufffd")


def without_controls(text: str, *, but: str = "") -> str:
    """Text with its control characters drawn, `but` for these: as they are, they would move a
    terminal's cursor, or worse."""
    return text.translate({code: c for code, c in _PICTURES.items() if chr(code) not in but})


def label_bytes(data: bytes) -> str:
    """`printable` for bytes; in hexadecimal when they are no text by themselves."""
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return "".join(f"\\x{value:02x}" for value in data)
