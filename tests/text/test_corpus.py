"""Source bytes to prepared text: decoding errors, newlines, BOM, letters_only, chunk borders."""

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


def write_file(tmp_path, data, name="text.txt"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def clean_as_d2l(text):
    """Clean a text as section 8.2 of d2l does, with universal newlines."""
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
def test_read_text_is_independent_of_chunk_size(tmp_path, chunk_bytes, data, config, text):
    assert read_text([write_file(tmp_path, data)], config) == text


def test_prepare_text_applies_text_config():
    assert prepare_text("a\r\nb\rc", CHAR) == "a\nb\nc"
    assert prepare_text("a\r\nb\rc", KEEP) == "a\r\nb\rc"
    assert prepare_text("a\r\nb", BYTE) == "a\r\nb"
    assert prepare_text(" A1b\r\n C!", LETTERS) == "a bc"
    assert prepare_text("a\ud800b", LETTERS) == "a b"


@settings(deadline=None, max_examples=200)
@given(st.text("aB \t,1é中\r\n", max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_letters_only_equals_d2l_for_any_chunks(text, cuts):
    assert prepare_text(text, LETTERS) == clean_as_d2l(text)
    unified = text.replace("\r\n", "\n").replace("\r", "\n")
    borders = [0, *sorted(cuts), len(unified)]
    letters = LettersOnly()
    parts = [letters.push(unified[a:b]) for a, b in pairwise(borders)]
    assert "".join(parts) == clean_as_d2l(text)


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
def test_read_text_invalid_byte_error_gives_offset(tmp_path, chunk_bytes, data, offset):
    path = write_file(tmp_path, data)
    message = rf"text\.txt .*utf-8.* 0x{data[offset]:02x} at offset {offset} "
    with pytest.raises(SourceError, match=message):
        read_text([path], CHAR)
    assert read_bytes([path], BYTE) == data


def test_read_text_error_offset_counts_within_file(tmp_path):
    first, second = write_file(tmp_path, b"good", "a.txt"), write_file(tmp_path, b"b\xff", "b.txt")
    with pytest.raises(SourceError, match=r"b\.txt .* at offset 1 "):
        read_text([first, second], CHAR)


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis"])
def test_read_text_error_offset_in_other_encodings(tmp_path, chunk_bytes, encoding):
    whole = "日本".encode(encoding)
    path = write_file(tmp_path, whole + whole[-2:-1])
    with pytest.raises(SourceError, match=f"at offset {len(whole)} "):
        read_text([path], TextConfig(encoding=encoding))


def test_read_text_encoding_yielding_surrogates_raises(tmp_path):
    path = write_file(tmp_path, b"a\\ud800")
    with pytest.raises(SourceError, match=r"text\.txt .*raw_unicode_escape"):
        read_text([path], TextConfig(encoding="raw_unicode_escape"))


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "", "a\0b"])
def test_read_text_unknown_encoding_raises(tmp_path, encoding):
    with pytest.raises(ConfigError, match=f"encoding {re.escape(repr(encoding))}"):
        read_text([write_file(tmp_path, b"a")], TextConfig(encoding=encoding))


@pytest.mark.parametrize(
    ("config", "joined"),
    [
        (CHAR, "one\ntwo\nthree"),
        (TextConfig(separator=""), "onetwothree"),
        (TextConfig(separator=" == "), "one == two == three"),
        (LETTERS, "onetwothree"),
    ],
)
def test_read_text_joins_files_with_separator(tmp_path, config, joined):
    paths = [
        write_file(tmp_path, b"\xef\xbb\xbf" * (name != "b") + data, name)
        for name, data in [("a", b"one"), ("b", b"two"), ("c", b"three")]
    ]
    assert read_text(paths, config) == joined


def test_read_text_unifies_newlines_within_each_file(tmp_path, chunk_bytes):
    paths = [write_file(tmp_path, b"a\r", "a"), write_file(tmp_path, b"\nb", "b")]
    assert read_text(paths, TextConfig(separator="")) == "a\n\nb"


def test_iterate_bytes_joins_files_with_encoded_separator(tmp_path, chunk_bytes):
    paths = [write_file(tmp_path, b"\xef\xbb\xbfa\r\n", "a"), write_file(tmp_path, b"\xff", "b")]
    config = TextConfig(tokens="byte", separator="é", encoding="latin-1")
    assert b"".join(iterate_bytes(paths, config)) == b"\xef\xbb\xbfa\r\n\xe9\xff"
    with pytest.raises(ConfigError, match="separator"):
        list(iterate_bytes(paths, TextConfig(tokens="byte", separator="中", encoding="latin-1")))


@pytest.mark.parametrize(
    ("data", "config"), [(b"\xef\xbb\xbf", CHAR), ("中文 123\n".encode(), LETTERS)]
)
def test_read_text_empty_result_raises(tmp_path, data, config):
    with pytest.raises(SourceError, match="text is empty"):
        read_text([write_file(tmp_path, data)], config)


def test_iterate_text_yields_before_reading_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 4)
    assert next(iterate_text([write_file(tmp_path, b"good\xff")], CHAR)) == "good"


def test_read_text_time_machine_matches_d2l_counts(real_data_folder):
    text = read_text(["time-machine"], LETTERS)
    assert len(text) == 170_580
    vocabulary = CharVocabulary.from_text(text)
    assert len(vocabulary) == 28
    assert vocabulary.tokens[:5] == ("<unk>", " ", "e", "t", "a")
