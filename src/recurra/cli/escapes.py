r"""Interpret backslash escapes in an argument, as the shell does in $'...'.

This applies to options for short strings of control characters: `--stop '\n'`. A prompt is text, in
which a backslash is common (TeX, regular expressions, Windows paths), and stays as it is.
"""

from __future__ import annotations

import re

from recurra.cli.parsing import decode_argument
from recurra.errors import ConfigError

_SIMPLE = {
    "a": 7, "b": 8, "e": 27, "E": 27, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11,
    "\\": 0x5C, "'": 0x27, '"': 0x22, "?": 0x3F,
}  # fmt: skip
_ESCAPE = re.compile(
    r"""\\(?:
      (?P<simple>[abeEfnrtv\\'"?])
    | (?P<octal>[0-7]{1,3})
    | x(?P<byte>[0-9a-fA-F]{1,2})
    | u(?P<point>[0-9a-fA-F]{1,4})
    | U(?P<long_point>[0-9a-fA-F]{1,8})
    )""",
    re.VERBOSE,
)


def unescape(option: str, argument: str) -> str:
    r"""Return an argument with its backslash escapes replaced.

    The escapes are those of bash: \n, \t, \\ and the other single letters, \NNN in octal, \xHH,
    \uHHHH and \UHHHHHHHH. \NNN and \xHH are bytes of UTF-8. Another character after a backslash
    stays unchanged, with the backslash.

    Args:
        option: name of the option, for the message.
        argument: the argument.

    Raises:
        ConfigError: the result is not valid UTF-8.

    Examples:
        >>> from recurra.cli.escapes import unescape
        >>> unescape("--stop", r"\n\u00e9\xc3\xa9\q")
        '\néé\\q'
    """
    given = decode_argument(argument)
    try:
        return b"".join(_pieces(given)).decode("utf-8")
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{option} is {given!r}; with its escapes replaced, it is not valid UTF-8"
        ) from error


def _pieces(text: str) -> list[bytes]:
    pieces, end = [], 0
    for match in _ESCAPE.finditer(text):
        pieces += [text[end : match.start()].encode("utf-8", "surrogateescape"), _encoded(match)]
        end = match.end()
    return [*pieces, text[end:].encode("utf-8", "surrogateescape")]


def _encoded(match: re.Match[str]) -> bytes:
    if match["simple"]:
        return bytes([_SIMPLE[match["simple"]]])
    if match["octal"]:
        return bytes([int(match["octal"], 8) & 0xFF])
    if match["byte"]:
        return bytes([int(match["byte"], 16)])
    return chr(int(match["point"] or match["long_point"], 16)).encode()
