"""Leave out generated lines that occur as a line of the training text.

A model that is trained on a list, for example of names, also generates entries of the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from recurra.config import TextConfig
from recurra.data.token_file import load_token_file, source_change
from recurra.errors import ConfigError, RunError
from recurra.inference.reading import IdArray
from recurra.text.vocabulary import Vocabulary

_CHUNK_IDS = 2**16
_logger = logging.getLogger("recurra")


class KnownLines:
    """Set of the lines of a text, stored as 64-bit hashes.

    With N lines, a new line is taken for a known one with a probability of about N / 2^64.

    Args:
        chunks: the text, in pieces.

    Examples:
        >>> from recurra.inference.novelty import KnownLines
        >>> known = KnownLines(["Anna\\nBe", "n\\n"])
        >>> "Ben" in known, "Be" in known
        (True, False)
    """

    def __init__(self, chunks: Iterable[str]) -> None:
        hashes = np.fromiter(map(hash, _lines(chunks)), np.int64)
        self._hashes = np.unique(hashes)

    def __contains__(self, line: str) -> bool:
        value = hash(line)
        place = int(np.searchsorted(self._hashes, value))
        return place < len(self._hashes) and int(self._hashes[place]) == value


class KnownLineFilter:
    """Filter that passes on the lines of a generated text that are not known.

    The first line begins with the end of the prompt. An empty line is always passed on. The last
    line is compared as it is, even if the text ends before the line does.

    Attributes:
        num_lines: number of lines so far, without empty lines.
        num_known: number of these lines that were left out.

    Args:
        known: the lines to leave out.
        prompt: the prompt of the text.
    """

    def __init__(self, known: KnownLines, prompt: str) -> None:
        self.num_lines = self.num_known = 0
        self._known = known
        self._line = prompt.rpartition("\n")[2]

    def push(self, piece: str) -> str:
        """Process the next piece of the generated text, and return the complete new lines."""
        *complete, self._line = (self._line + piece).split("\n")
        return "".join(f"{line}\n" for line in complete if self._is_new(line))

    def finish(self) -> str:
        """Return the last line if it is new, because no more text follows."""
        line, self._line = self._line, ""
        return line if self._is_new(line) else ""

    def _is_new(self, line: str) -> bool:
        if not line:
            return True
        is_known = line in self._known
        self.num_lines += 1
        self.num_known += is_known
        return not is_known


def known_lines(path: Path | None, vocabulary: Vocabulary, config: TextConfig) -> KnownLines:
    """Return the lines of the text of a run, of both the training and the validation part.

    A warning is logged if the source of the text has changed since the run was created.

    Args:
        path: the run directory, or None if the model has none.
        vocabulary: the vocabulary of the run.
        config: the text configuration of the run.

    Raises:
        ConfigError: the text has no lines, because `letters_only` removes line ends.
        RunError: the run does not contain its text, or tokens.bin is damaged.
    """
    if config.letters_only:
        raise ConfigError("only_new compares lines, but letters_only removes the ends of lines")
    if path is None:
        raise RunError("only_new needs the training text, but the model has no run directory")
    if not (path / "tokens.json").is_file():
        raise RunError(f"only_new needs the training text, which {path} does not contain")
    tokens = load_token_file(path)
    tokens.verify()
    tokens.check_ids(len(vocabulary))
    if (change := source_change(path)) is not None:
        _logger.warning("%s; lines are compared with the original text of the run", change)
    return KnownLines(_texts(tokens.ids, vocabulary))


def without_known_lines(pieces: Iterable[str], known: KnownLines, prompt: str) -> Iterator[str]:
    """Yield the new lines of a generated text; log how many lines were left out.

    Args:
        pieces: the generated text, without the prompt.
        known: the lines to leave out.
        prompt: the prompt.
    """
    lines = KnownLineFilter(known, prompt)
    yield from filter(None, map(lines.push, pieces))
    yield from filter(None, [lines.finish()])
    _log_count(lines.num_known, lines.num_lines)


def texts_without_known_lines(texts: Sequence[str], known: KnownLines, prompt: str) -> list[str]:
    """Return the new lines of each text, without texts that have none; log how many were left out.

    The arguments are those of `without_known_lines`, for several texts.
    """
    found, num_known, num_lines = [], 0, 0
    for text in texts:
        lines = KnownLineFilter(known, prompt)
        kept = lines.push(text) + lines.finish()
        if lines.num_known < lines.num_lines:
            found.append(kept)
        num_known, num_lines = num_known + lines.num_known, num_lines + lines.num_lines
    _log_count(num_known, num_lines)
    return found


def _log_count(num_known: int, num_lines: int) -> None:
    if num_known:
        _logger.info(
            "left out %d of %d generated lines, which occur in the text of the run",
            num_known,
            num_lines,
        )


def _texts(ids: IdArray, vocabulary: Vocabulary) -> Iterator[str]:
    decoder = vocabulary.decoder()
    for start in range(0, len(ids), _CHUNK_IDS):
        yield "".join(map(decoder.push, ids[start : start + _CHUNK_IDS].tolist()))
    yield decoder.finish()


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []
    for chunk in chain(chunks, ["\n"]):
        first, *others = chunk.split("\n")
        parts.append(first)
        for line in others:
            yield "".join(parts)
            parts = [line]
