"""Byte-level BPE: every string, exactly, however it is cut."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.errors import ConfigError, MissingExtraError, SourceError
from recurra.text.vocabularies import vocabulary_from_dict

pytest.importorskip("tokenizers", reason="the bpe extra is not installed")

from recurra.text import bpe
from recurra.text.bpe import BpeVocabulary

TEXT = "the cat sat on the mat; the hat sat on the cat. 你好，你好！ don't don't\n\n" * 5
VOCABULARY = BpeVocabulary.train([TEXT], vocab_size=300)


def test_frequent_sequences_become_tokens():
    assert 257 <= len(VOCABULARY) <= 300
    the = VOCABULARY.encode(" the")
    assert len(the) == 1
    assert VOCABULARY.label(int(the[0])) == "\u2423the"
    assert VOCABULARY.unknown_id is None


def test_labels_of_partial_characters_are_hexadecimal():
    first, second, third = VOCABULARY.encode("\u00df\u00e4")[:3]
    assert VOCABULARY.label(int(first)) == "\\xc3"
    assert VOCABULARY.label(int(second)) == "\\x9f"
    assert VOCABULARY.label(int(third)) == "\\xc3"


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text("the 'sd你好🙂\n\x1c")))
def test_every_string_round_trips(text):
    ids = VOCABULARY.encode(text)
    assert VOCABULARY.decode(ids) == text
    decoder = VOCABULARY.decoder()
    assert "".join(decoder.push(int(i)) for i in ids) + decoder.finish() == text
    lengths = VOCABULARY.byte_lengths(text)
    assert len(lengths) == len(ids)
    assert lengths.sum() == len(text.encode())


@settings(deadline=None, max_examples=100)
@given(st.text("the 'sd你好，. \n\x1c9_\u0301", max_size=60), st.integers(1, 9))
def test_small_pieces_do_not_change_the_tokens(text, size):
    whole = VOCABULARY.encode(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PIECE_CHARS", size)
        assert VOCABULARY.encode(text).tolist() == whole


def test_the_tokenizer_travels_in_the_json():
    again = vocabulary_from_dict(json.loads(json.dumps(VOCABULARY.to_dict())))
    assert again == VOCABULARY
    assert again.encode(TEXT).tolist() == VOCABULARY.encode(TEXT).tolist()


def test_training_is_repeatable():
    assert BpeVocabulary.train([TEXT], vocab_size=300).fingerprint == VOCABULARY.fingerprint


def test_the_size_defaults_to_512_and_is_at_least_257():
    varied = " ".join(f"{a}{b}{c} " * 2 for a in "abcdefgh" for b in "ijklmn" for c in "opqrst")
    assert len(BpeVocabulary.train([varied])) == 512
    assert len(BpeVocabulary.train([varied], vocab_size=257)) == 257
    with pytest.raises(ConfigError, match="vocab_size is 256"):
        BpeVocabulary.train([varied], vocab_size=256)


def test_a_pair_that_occurs_once_is_not_learned():
    assert len(BpeVocabulary.train(["ab cd ef"])) == 256


def test_a_lone_surrogate_has_no_bytes():
    with pytest.raises(SourceError, match="position 2"):
        VOCABULARY.encode("ab\ud800")


@pytest.mark.parametrize("tokenizer", [None, {}, "text", {"version": "1.0"}])
def test_malformed_values_name_the_field(tokenizer):
    with pytest.raises(ConfigError, match="field 'tokenizer'"):
        vocabulary_from_dict({"kind": "bpe", "tokenizer": tokenizer})


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    values = VOCABULARY.to_dict()
    values["tokenizer"]["model"]["vocab"]["中"] = len(VOCABULARY)
    with pytest.raises(ConfigError, match="not byte-level"):
        vocabulary_from_dict(values)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'recurra\[bpe\]'"):
        BpeVocabulary.train([TEXT])
