"""Bytes to prepared text: decoding errors, newlines, BOM, the book's cleaning, chunk borders."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.config import TextConfig
from recurra.errors import ConfigError, SourceError
from recurra.text import sources
from recurra.text.corpus import (
    LettersOnly,
    iterate_bytes,
    iterate_text,
    prepare_text,
    read_bytes,
    read_text,
)
from recurra.text.vocabulary import CharVocabulary

CHAR = TextConfig()
KEEP = TextConfig(newlines="keep")
BYTE = TextConfig(tokens="byte")
LETTERS = TextConfig(letters_only=True)


@pytest.fixture(params=[1, 2, 3, 1 << 20])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", request.param)
    return request.param


def saved(tmp_path, data, name="text.txt"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def by_the_book(text):
    """Section 9.2 of the book, with its universal newlines."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in lines)


@pytest.mark.parametrize(
    ("data", "config", "text"),
    [
        (b"a\r\nb\rc\n\r\r\nd\r", CHAR, "a\nb\nc\n\n\nd\n"),
        (b"a\r\nb\rc", KEEP, "a\r\nb\rc"),
        ("é中🙂".encode(), CHAR, "é中🙂"),
        (b"\xef\xbb\xbfa\xef\xbb\xbfb", CHAR, "a\ufeffb"),
        ("a中\r\n".encode("utf-16"), TextConfig(encoding="utf-16"), "a中\n"),
        ("\ufeffa中".encode("utf-16-be"), TextConfig(encoding="utf-16-be"), "a中"),
        ("中文\r\n".encode("gb18030"), TextConfig(encoding="gb18030"), "中文\n"),
        (b"caf\xe9", TextConfig(encoding="latin-1"), "café"),
        (b"\xef\xbb\xbfa\r\n", BYTE, "\ufeffa\r\n"),
        (b"  The--Time\r\n\r\n 1 Machine,\tby ", LETTERS, "the timemachine by"),
    ],
)
def test_text_does_not_depend_on_chunks(tmp_path, chunk_bytes, data, config, text):
    assert read_text([saved(tmp_path, data)], config) == text


def test_prepare_text_follows_the_same_rules():
    assert prepare_text("a\r\nb\rc", CHAR) == "a\nb\nc"
    assert prepare_text("a\r\nb\rc", KEEP) == "a\r\nb\rc"
    assert prepare_text("a\r\nb", BYTE) == "a\r\nb"
    assert prepare_text(" A1b\r\n C!", LETTERS) == "a bc"
    assert prepare_text("a\ud800b", LETTERS) == "a b"


@settings(deadline=None, max_examples=200)
@given(st.text("aB \t,1é中\r\n", max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_letters_only_is_the_book_s_cleaning_however_it_is_cut(text, cuts):
    assert prepare_text(text, LETTERS) == by_the_book(text)
    unified = text.replace("\r\n", "\n").replace("\r", "\n")
    borders = [0, *sorted(cuts), len(unified)]
    letters = LettersOnly()
    parts = [letters.push(unified[a:b]) for a, b in pairwise(borders)]
    assert "".join(parts) == by_the_book(text)


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\xff", 0),
        (b"abc\xffdef", 3),
        (b"ab\xe4\xb8\xad\xe4\xb8c", 5),
        (b"abcd\xe4\xb8", 4),
        (b"\xef\xbb\xbfab\x80", 5),
        (b"a\r\n\r\n\x80", 5),
    ],
)
def test_invalid_bytes_are_named_with_their_offset(tmp_path, chunk_bytes, data, offset):
    path = saved(tmp_path, data)
    message = rf"text\.txt is not utf-8 text: byte 0x{data[offset]:02x} at offset {offset} .*byte"
    with pytest.raises(SourceError, match=message):
        read_text([path], CHAR)
    assert read_bytes([path], BYTE) == data


def test_the_offset_counts_in_the_file_not_in_the_stream(tmp_path):
    good, bad = saved(tmp_path, b"good", "a.txt"), saved(tmp_path, b"b\xff", "b.txt")
    with pytest.raises(SourceError, match=r"b\.txt .* at offset 1 "):
        read_text([good, bad], CHAR)


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis"])
def test_offsets_in_other_encodings(tmp_path, chunk_bytes, encoding):
    whole = "日本".encode(encoding)
    path = saved(tmp_path, whole + whole[-2:-1])
    with pytest.raises(SourceError, match=f"at offset {len(whole)} "):
        read_text([path], TextConfig(encoding=encoding))


def test_an_encoding_that_yields_half_characters_is_refused(tmp_path):
    path = saved(tmp_path, b"a\\ud800")
    with pytest.raises(SourceError, match=r"text\.txt is not raw_unicode_escape text"):
        read_text([path], TextConfig(encoding="raw_unicode_escape"))


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "", "a\0b"])
def test_unknown_encodings(tmp_path, encoding):
    with pytest.raises(ConfigError, match="unknown text encoding"):
        read_text([saved(tmp_path, b"a")], TextConfig(encoding=encoding))


@pytest.mark.parametrize(
    ("config", "joined"),
    [
        (CHAR, "one\ntwo\nthree"),
        (TextConfig(separator=""), "onetwothree"),
        (TextConfig(separator=" == "), "one == two == three"),
        (LETTERS, "onetwothree"),
    ],
)
def test_files_are_joined_by_the_separator(tmp_path, config, joined):
    paths = [
        saved(tmp_path, b"\xef\xbb\xbf" * (name != "b") + data, name)
        for name, data in [("a", b"one"), ("b", b"two"), ("c", b"three")]
    ]
    assert read_text(paths, config) == joined


def test_a_line_end_cut_by_a_file_s_end_stays_in_its_file(tmp_path, chunk_bytes):
    paths = [saved(tmp_path, b"a\r", "a"), saved(tmp_path, b"\nb", "b")]
    assert read_text(paths, TextConfig(separator="")) == "a\n\nb"


def test_bytes_are_joined_by_the_encoded_separator(tmp_path, chunk_bytes):
    paths = [saved(tmp_path, b"\xef\xbb\xbfa\r\n", "a"), saved(tmp_path, b"\xff", "b")]
    config = TextConfig(tokens="byte", separator="é", encoding="latin-1")
    assert b"".join(iterate_bytes(paths, config)) == b"\xef\xbb\xbfa\r\n\xe9\xff"
    with pytest.raises(ConfigError, match="cannot encode the separator"):
        list(iterate_bytes(paths, TextConfig(tokens="byte", separator="中", encoding="latin-1")))


@pytest.mark.parametrize(
    ("data", "config"), [(b"\xef\xbb\xbf", CHAR), ("中文 123\n".encode(), LETTERS)]
)
def test_text_with_nothing_left_is_refused(tmp_path, data, config):
    with pytest.raises(SourceError, match="the text is empty"):
        read_text([saved(tmp_path, data)], config)


def test_a_stream_gives_text_before_it_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 4)
    assert next(iterate_text([saved(tmp_path, b"good\xff")], CHAR)) == "good"


def test_the_time_machine_has_the_book_s_figures(real_data_folder):
    text = read_text(["time-machine"], LETTERS)
    assert len(text) == 170_580
    vocabulary = CharVocabulary.from_text(text)
    assert len(vocabulary) == 28
    assert vocabulary.tokens[:5] == ("<unk>", " ", "e", "t", "a")
