"""shuffled_lines: every line once, in an order that depends on the number of lines only."""

import random

import pytest

from recurra.config import TextConfig
from recurra.text import lines
from recurra.text.corpus import read_bytes, read_text
from recurra.text.lines import shuffled_lines


def cut(data, seed):
    """Cut bytes into chunks of random sizes."""
    draw, chunks = random.Random(seed), []
    while data:
        size = draw.randrange(0, 12)
        chunks.append(data[:size])
        data = data[size:]
    return chunks


@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("max_memory", [1 << 26, 8])
def test_shuffled_lines_yields_every_line_once_whatever_the_chunks(ending, max_memory, monkeypatch):
    monkeypatch.setattr(lines, "MAX_MEMORY", max_memory)
    data = b"\n".join(b"line %d" % i for i in range(500)) + b"\n\n\xff" + ending
    expected = b"".join(shuffled_lines([data]))
    assert expected.splitlines() != data.splitlines()
    assert sorted(expected.splitlines()) == sorted(data.splitlines())
    for seed in range(5):
        assert b"".join(shuffled_lines(cut(data, seed))) == expected


def test_shuffled_lines_of_long_text_come_in_several_chunks(monkeypatch):
    monkeypatch.setattr(lines, "_CHUNK_BYTES", 100)
    chunks = list(shuffled_lines([b"0123456789\n" * 100]))
    assert len(chunks) > 5
    assert b"".join(chunks) == b"0123456789\n" * 100


def test_shuffled_lines_of_nothing_is_nothing():
    assert b"".join(shuffled_lines([])) == b""


def test_read_text_with_shuffle_lines_joins_files_cleans_and_decodes(tmp_path):
    (tmp_path / "a.txt").write_bytes("é1\r\né2\r\n".encode())
    (tmp_path / "b.txt").write_bytes("Öl 3".encode())
    text = read_text([tmp_path], TextConfig(shuffle_lines=True, separator=""))
    assert sorted(text) == sorted("é1\né2\nÖl 3\n")
    cleaned = read_text([tmp_path / "b.txt"], TextConfig(shuffle_lines=True, letters_only=True))
    assert cleaned == "l"
    data = read_bytes([tmp_path], TextConfig(shuffle_lines=True, tokens="byte", separator=""))
    assert sorted(data.split(b"\n")) == sorted("é1\r\né2\r\nÖl 3\n".encode().split(b"\n"))
