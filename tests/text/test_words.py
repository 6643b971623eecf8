"""Word tokens: the splitting rules, and independence of the chunks of a stream."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.text.words import cut_at_borders, slices, split_words

TRICKY = st.text(alphabet="aB9_'\u2019.,\"- \t\n\r\x1c中é²\u0301🙂", max_size=60)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("Two words", ["Two", " words"]),
        ("don't, O'Brien's'", ["don't", ",", " O'Brien's", "'"]),
        ("it\u2019s", ["it\u2019s"]),
        ("'tis", ["'", "tis"]),
        ("a  b", ["a", " ", " b"]),
        ("a\n b\t", ["a", "\n", " b", "\t"]),
        ("end. (x_1)", ["end", ".", " (", "x_1", ")"]),
        ("...", [".", ".", "."]),
        ("好，好", ["好", "，", "好"]),
        ("\ud800", ["\ud800"]),
    ],
)
def test_split_words_separates_words_and_punctuation(text, tokens):
    assert split_words(text) == tokens


@settings(deadline=None, max_examples=200)
@given(TRICKY, st.integers(1, 7))
def test_split_words_is_lossless_for_any_chunks(text, size):
    assert "".join(split_words(text)) == text
    pieces = list(cut_at_borders(slices(text, size)))
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in split_words(piece)] == split_words(text)


def test_cut_at_borders_yields_before_stream_ends():
    chunks = iter(["one two", " three", " four"])
    pieces = cut_at_borders(chunks)
    assert next(pieces) == "one"
    assert next(chunks) == " three"


def test_cut_at_borders_without_spaces_uses_punctuation():
    assert list(cut_at_borders(["好好，好", "好。好"])) == ["好好，", "好好。", "好"]
