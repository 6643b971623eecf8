"""Ids become text one by one: never half a character, never a false U+FFFD."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.text.decoding import IncrementalDecoder
from recurra.text.vocabulary import ByteVocabulary, CharVocabulary

BYTES = ByteVocabulary()


def pushed(decoder: IncrementalDecoder, ids: bytes) -> list[str]:
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
def test_a_character_appears_with_its_last_byte(text, pieces):
    assert pushed(BYTES.decoder(), text.encode()) == pieces


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"\xff", ["\ufffd"]),
        (b"\x80a", ["\ufffd", "a"]),
        # A broken character is certain to be broken only when the next byte does not continue it.
        (b"\xf0\x9fa", ["", "", "\ufffda"]),
        (b"\xe4\xe4\xb8\xad", ["", "\ufffd", "", "中"]),
        # E0 must be followed by A0 or more, so both bytes are wrong at once.
        (b"\xe0\x80", ["", "\ufffd\ufffd"]),
    ],
)
def test_invalid_bytes_are_replaced_as_soon_as_they_are_certain(data, pieces):
    assert pushed(BYTES.decoder(), data) == pieces


@pytest.mark.parametrize("tail", [b"\xe4", b"\xe4\xb8", b"\xf0\x9f\x99"])
def test_an_incomplete_tail_is_dropped(tail):
    decoder = BYTES.decoder()
    assert "".join(pushed(decoder, b"ab" + tail)) + decoder.finish() == "ab"
    assert BYTES.decode(b"ab" + tail) == "ab"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([b"a", b"\xf0", b"\x9f", b"\x99", b"\x82", b"\xe4", b"\xff"])))
def test_streamed_equals_unstreamed(parts):
    data = b"".join(parts)
    decoder = BYTES.decoder()
    streamed = "".join(pushed(decoder, data)) + decoder.finish()
    assert streamed == BYTES.decode(data)
    # Text after the bytes makes an incomplete tail invalid; all else must already be there.
    assert (data + b"!").decode(errors="replace").removesuffix("!").startswith(streamed)


def test_symbols_are_certain_at_once():
    vocabulary = CharVocabulary.from_text("ab中")
    decoder = vocabulary.decoder()
    ids = vocabulary.encode("中ba")
    assert [decoder.push(i) for i in ids] == ["中", "b", "a"]
    assert decoder.push(0) == "\ufffd"
    assert decoder.finish() == ""
