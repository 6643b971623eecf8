"""Vocabularies of characters, words and bytes: text to ids and ids to text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.errors import ConfigError, SourceError, UnknownTokenError
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.vocabularies import vocabulary_from_dict
from recurra.text.vocabulary import CharVocabulary, WordVocabulary

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SYMBOL_KINDS = [CharVocabulary, WordVocabulary]


def test_char_vocabulary_sorts_by_frequency_then_code_point():
    vocabulary = CharVocabulary.from_text("cabbage")
    assert vocabulary.tokens == ("<unk>", "a", "b", "c", "e", "g")
    assert len(vocabulary) == 6
    assert vocabulary.unknown_id == 0
    assert vocabulary.encode("bag").tolist() == [2, 1, 5]
    assert vocabulary.encode("bag").dtype == np.int64
    assert vocabulary.encode("").tolist() == []


def test_word_vocabulary_sorts_by_frequency_then_string():
    vocabulary = WordVocabulary.from_text("b a, b a, b\n")
    assert vocabulary.tokens == ("<unk>", " a", " b", ",", "\n", "b")
    assert vocabulary.encode("b a, b").tolist() == [5, 1, 3, 2]


def test_from_counts_applies_min_freq_and_vocab_size():
    counts = {"a": 3, "b": 2, "c": 2, "d": 1, "e": 0}
    assert CharVocabulary.from_counts(counts).tokens == ("<unk>", "a", "b", "c", "d")
    assert CharVocabulary.from_counts(counts, min_freq=2).tokens == ("<unk>", "a", "b", "c")
    assert CharVocabulary.from_counts(counts, vocab_size=3).tokens == ("<unk>", "a", "b")
    with pytest.raises(ConfigError, match=r"min_freq 4 .* 3$"):
        CharVocabulary.from_counts(counts, min_freq=4)


@pytest.mark.parametrize("kind", SYMBOL_KINDS)
@settings(deadline=None, max_examples=100)
@given(text=ANY_TEXT.filter(bool))
def test_symbol_vocabulary_known_text_round_trips(kind, text):
    vocabulary = kind.from_text(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert (ids > 0).all()
    lengths = vocabulary.byte_lengths(text)
    assert lengths.tolist() == [len(vocabulary.tokens[i].encode()) for i in ids]
    assert vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@settings(deadline=None, max_examples=100)
@given(ANY_TEXT)
def test_byte_vocabulary_text_round_trips(text):
    vocabulary = ByteVocabulary()
    assert vocabulary.encode(text).tolist() == list(text.encode())
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.byte_lengths(text).tolist() == [1] * len(text.encode())


def test_byte_vocabulary_encodes_any_bytes():
    vocabulary = ByteVocabulary()
    assert len(vocabulary) == 256
    assert vocabulary.unknown_id is None
    assert vocabulary.encode_bytes(b"\x00\xff\r\n").tolist() == [0, 255, 13, 10]


@pytest.mark.parametrize(
    ("kind", "known", "text", "symbol", "position", "replaced"),
    [
        (CharVocabulary, "ab", "abcab", "c", 2, [1, 2, 0, 1, 2]),
        (CharVocabulary, "ab", "a🙂", "🙂", 1, [1, 0]),
        (CharVocabulary, "🙂", "中", "中", 0, [0]),
        (CharVocabulary, "ab", "a\udc80", "\udc80", 1, [1, 0]),
        (WordVocabulary, "one two", "one two three", " three", 7, [2, 1, 0]),
        (WordVocabulary, "one two", "two", "two", 0, [0]),
    ],
)
def test_encode_unknown_symbol_raises_or_is_replaced(kind, known, text, symbol, position, replaced):
    vocabulary = kind.from_text(known)
    with pytest.raises(UnknownTokenError) as caught:
        vocabulary.encode(text)
    assert (caught.value.symbol, caught.value.position) == (symbol, position)
    with pytest.raises(UnknownTokenError):
        vocabulary.byte_lengths(text)
    assert vocabulary.encode(text, unknown="replace").tolist() == replaced


def test_byte_lengths_count_replaced_symbols():
    vocabulary = CharVocabulary.from_text("ab")
    assert vocabulary.byte_lengths("aé中🙂", unknown="replace").tolist() == [1, 2, 3, 4]
    words = WordVocabulary.from_text("ab")
    assert words.byte_lengths("ab 中文", unknown="replace").tolist() == [2, 7]


def test_decode_unknown_id_gives_replacement_character():
    vocabulary = CharVocabulary.from_text("a\ufffd")
    ids = vocabulary.encode("a\ufffdb", unknown="replace")
    assert ids.tolist() == [1, 2, 0]
    assert vocabulary.decode(ids) == "a\ufffd\ufffd"


@pytest.mark.parametrize("kind", SYMBOL_KINDS)
def test_byte_lengths_lone_surrogate_raises(kind):
    with pytest.raises(SourceError, match="position 1"):
        kind.from_text("ab").byte_lengths("a\ud800", unknown="replace")


def test_byte_vocabulary_encode_lone_surrogate_raises():
    with pytest.raises(SourceError, match=r"'\\ud800' at position 1"):
        ByteVocabulary().encode("a\ud800", unknown="replace")


@pytest.mark.parametrize("vocabulary", [CharVocabulary.from_text("ab"), ByteVocabulary()])
@pytest.mark.parametrize("outside", [-1, 256])
def test_decode_id_outside_vocabulary_raises(vocabulary, outside):
    with pytest.raises(IndexError, match=f"id {outside} "):
        vocabulary.decode([1, outside])


def test_decode_accepts_any_iterable():
    vocabulary = CharVocabulary.from_text("ab")
    assert vocabulary.decode(iter([1, 2])) == vocabulary.decode(np.array([1, 2])) == "ab"
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "token", "label"),
    [
        ("a b", "a", "a"),
        ("a b", " ", "\u2423"),
        ("a\nb", "\n", "\\n"),
        ("a\u200bb", "\u200b", "\\u200b"),
    ],
)
def test_char_vocabulary_label_escapes_invisible_characters(text, token, label):
    vocabulary = CharVocabulary.from_text(text)
    assert vocabulary.label(vocabulary.index[token]) == label
    assert vocabulary.label(0) == "<unk>"


def test_byte_vocabulary_label_escapes_unprintable_bytes():
    labels = [ByteVocabulary().label(value) for value in (0x41, 0x20, 0x0A, 0x00, 0xE4)]
    assert labels == ["A", "\u2423", "\\n", "\\x00", "\\xe4"]


def test_fingerprint_distinguishes_vocabularies():
    vocabularies = [
        CharVocabulary(["a", "b"]),
        CharVocabulary(["b", "a"]),
        WordVocabulary(["a", "b"]),
        ByteVocabulary(),
    ]
    assert len({v.fingerprint for v in vocabularies}) == len(set(vocabularies)) == 4
    assert CharVocabulary.from_text("aab") == vocabularies[0]
    # Pinned: if it changed, every saved run would fail its vocabulary check.
    assert ByteVocabulary().fingerprint == (
        "7da8b59d384076438bab9ae10dee36e1ed40155053c42c319918fb1eb47b641e"
    )


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "kind"),
        ([], "kind"),
        ({"kind": "letters"}, "kind"),
        ({"kind": "char"}, "tokens"),
        ({"kind": "char", "tokens": ["a"]}, "tokens"),
        ({"kind": "char", "tokens": ["<unk>", "ab"]}, "tokens"),
        ({"kind": "char", "tokens": ["<unk>", ""]}, "tokens"),
        ({"kind": "char", "tokens": ["<unk>", 1]}, "tokens"),
        ({"kind": "char", "tokens": ["<unk>", "a", "a"]}, "tokens"),
        ({"kind": "word", "tokens": ["<unk>", "two words"]}, "tokens"),
    ],
)
def test_vocabulary_from_dict_malformed_error_names_field(values, field):
    with pytest.raises(ConfigError, match=f"field '{field}'"):
        vocabulary_from_dict(values)
