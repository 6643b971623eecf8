"""Documents: tokens, bytes and characters of texts and of arbitrary bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import TextConfig
from recurra.errors import ConfigError
from recurra.inference.document import decode_document, encode_document, extent_of_first
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.vocabulary import CharVocabulary

BYTES = ByteVocabulary()
CONFIG = TextConfig(tokens="byte")


@given(st.binary(min_size=1, max_size=60))
def test_document_arbitrary_bytes_round_trip(data):
    document = encode_document(data, BYTES, CONFIG)
    assert len(document.char_sizes) == len(document.text)
    assert document.char_sizes.sum() == document.token_sizes.sum() == len(data)
    assert decode_document(document.ids, BYTES) == data


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_document_utf8_bytes_equal_their_text(text):
    from_text = encode_document(text, BYTES, CONFIG)
    from_bytes = encode_document(text.encode(), BYTES, CONFIG)
    assert from_bytes.text == from_text.text == text
    for a, b in zip(from_bytes[2:4], from_text[2:4], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(from_bytes.ids, from_text.ids)


@given(st.text(alphabet="aé水🙂", min_size=2, max_size=12))
def test_document_extent_agrees_with_extent_of_first(text):
    document = encode_document(text, BYTES, CONFIG)
    first = extent_of_first(document.ids, BYTES)
    num_chars, num_bytes = document.extent(len(document.ids) - 1)
    assert (num_chars + first[0], num_bytes + first[1]) == (len(text), len(text.encode()))


@pytest.mark.parametrize(
    ("data", "text", "sizes"),
    [
        (b"a\xc3\xa9b", "aéb", [1, 2, 1]),
        (b"\xa9\xa9a", "\ufffda", [2, 1]),
        (b"\xc3\xa9\x80", "\ufffd", [3]),
        (b"\xff\xfe", "\ufffd\ufffd", [1, 1]),
    ],
)
def test_document_invalid_bytes_become_replacement_character(data, text, sizes):
    document = encode_document(data, BYTES, CONFIG)
    assert document.text == text
    assert document.char_sizes.tolist() == sizes


def test_document_bytes_with_char_vocabulary_are_rejected():
    with pytest.raises(ConfigError, match="char"):
        encode_document(b"a", CharVocabulary.from_text("ab"), TextConfig())
