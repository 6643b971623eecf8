"""Incremental decoding: no partial characters, and U+FFFD only for invalid bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.decoding import IncrementalDecoder
from recurra.text.vocabulary import CharVocabulary

BYTES = ByteVocabulary()


def push_each(decoder: IncrementalDecoder, ids: bytes) -> list[str]:
    return [decoder.push(i) for i in ids]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a", ["a"]),
        ("é", ["", "é"]),
        ("中", ["", "", "中"]),
        ("🙂", ["", "", "", "🙂"]),
        ("a中b", ["a", "", "", "中", "b"]),
    ],
)
def test_utf8_decoder_emits_character_at_last_byte(text, pieces):
    assert push_each(BYTES.decoder(), text.encode()) == pieces


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"\xff", ["\ufffd"]),
        (b"\x80a", ["\ufffd", "a"]),
        # An incomplete character is invalid only once the next byte does not continue it.
        (b"\xf0\x9fa", ["", "", "\ufffda"]),
        (b"\xe4\xe4\xb8\xad", ["", "\ufffd", "", "中"]),
        # E0 must be followed by A0 or more, so 80 makes both bytes invalid.
        (b"\xe0\x80", ["", "\ufffd\ufffd"]),
    ],
)
def test_utf8_decoder_replaces_bytes_once_known_invalid(data, pieces):
    assert push_each(BYTES.decoder(), data) == pieces


@pytest.mark.parametrize("tail", [b"\xe4", b"\xe4\xb8", b"\xf0\x9f\x99"])
def test_utf8_decoder_drops_incomplete_tail(tail):
    decoder = BYTES.decoder()
    assert "".join(push_each(decoder, b"ab" + tail)) + decoder.finish() == "ab"
    assert BYTES.decode(b"ab" + tail) == "ab"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([b"a", b"\xf0", b"\x9f", b"\x99", b"\x82", b"\xe4", b"\xff"])))
def test_utf8_decoder_equals_decode(parts):
    data = b"".join(parts)
    decoder = BYTES.decoder()
    streamed = "".join(push_each(decoder, data)) + decoder.finish()
    assert streamed == BYTES.decode(data)
    # The appended text makes an incomplete tail invalid; the rest must already be decoded.
    assert (data + b"!").decode(errors="replace").removesuffix("!").startswith(streamed)


def test_symbol_decoder_emits_each_symbol_immediately():
    vocabulary = CharVocabulary.from_text("ab中")
    decoder = vocabulary.decoder()
    ids = vocabulary.encode("中ba")
    assert [decoder.push(i) for i in ids] == ["中", "b", "a"]
    assert decoder.push(0) == "\ufffd"
    assert decoder.finish() == ""
