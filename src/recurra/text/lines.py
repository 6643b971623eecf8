"""Shuffle the lines of a text that can be larger than memory."""

from __future__ import annotations

import random
import tempfile
from array import array
from collections.abc import Iterable, Iterator

SEED = 0
"""Seed of the order, which is the same for every run, so that runs hold out the same lines."""
MAX_MEMORY = 1 << 26
"""Number of bytes up to which a text is kept in memory instead of a temporary file."""
_CHUNK_BYTES = 1 << 20


def shuffled_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a text in random order, several at a time.

    Every line ends with a newline, which is added to the last line of the text if it has none.

    Args:
        chunks: the bytes of the text; a line ends with b"\\n".

    Examples:
        >>> from recurra.text.lines import shuffled_lines
        >>> b"".join(shuffled_lines([b"a\\nb", b"c\\nd"]))
        b'd\\na\\nbc\\n'
    """
    starts = array("q", [0])
    with tempfile.SpooledTemporaryFile(MAX_MEMORY) as file:
        position, ends_with_newline = 0, True
        for chunk in filter(None, chunks):
            file.write(chunk)
            found = chunk.find(b"\n")
            while found >= 0:
                starts.append(position + found + 1)
                found = chunk.find(b"\n", found + 1)
            position += len(chunk)
            ends_with_newline = chunk.endswith(b"\n")
        if not ends_with_newline:
            file.write(b"\n")
            starts.append(position + 1)
        order = list(range(len(starts) - 1))
        random.Random(SEED).shuffle(order)
        lines: list[bytes] = []
        num_bytes = 0
        for number in order:
            file.seek(starts[number])
            lines.append(file.read(starts[number + 1] - starts[number]))
            num_bytes += len(lines[-1])
            if num_bytes >= _CHUNK_BYTES:
                yield b"".join(lines)
                lines, num_bytes = [], 0
        yield b"".join(lines)
