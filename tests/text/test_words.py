"""Word tokens: what they are, that nothing is lost, and that cutting a stream changes nothing."""

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
def test_tokens(text, tokens):
    assert split_words(text) == tokens


@settings(deadline=None, max_examples=200)
@given(TRICKY, st.integers(1, 7))
def test_nothing_is_lost_and_cuts_do_not_matter(text, size):
    assert "".join(split_words(text)) == text
    pieces = list(cut_at_borders(slices(text, size)))
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in split_words(piece)] == split_words(text)


def test_a_stream_is_not_held_back_to_its_end():
    chunks = iter(["one two", " three", " four"])
    pieces = cut_at_borders(chunks)
    assert next(pieces) == "one"
    assert next(chunks) == " three"


def test_text_without_spaces_is_cut_at_punctuation():
    assert list(cut_at_borders(["好好，好", "好。好"])) == ["好好，", "好好。", "好"]
