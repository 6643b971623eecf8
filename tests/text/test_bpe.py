"""Byte-level BPE: every string round-trips, and the piece size does not change the tokens."""

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


def test_bpe_train_merges_frequent_sequences():
    assert 257 <= len(VOCABULARY) <= 300
    ids = VOCABULARY.encode(" the")
    assert len(ids) == 1
    assert VOCABULARY.label(int(ids[0])) == "\u2423the"
    assert VOCABULARY.unknown_id is None


def test_bpe_label_of_partial_character_is_hexadecimal():
    first, second, third = VOCABULARY.encode("\u00df\u00e4")[:3]
    assert VOCABULARY.label(int(first)) == "\\xc3"
    assert VOCABULARY.label(int(second)) == "\\x9f"
    assert VOCABULARY.label(int(third)) == "\\xc3"


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text("the 'sd你好🙂\n\x1c")))
def test_bpe_any_text_round_trips(text):
    ids = VOCABULARY.encode(text)
    assert VOCABULARY.decode(ids) == text
    decoder = VOCABULARY.decoder()
    assert "".join(decoder.push(int(i)) for i in ids) + decoder.finish() == text
    lengths = VOCABULARY.byte_lengths(text)
    assert len(lengths) == len(ids)
    assert lengths.sum() == len(text.encode())


@settings(deadline=None, max_examples=100)
@given(st.text("the 'sd你好，. \n\x1c9_\u0301", max_size=60), st.integers(1, 9))
def test_bpe_encode_is_independent_of_piece_size(text, size):
    whole = VOCABULARY.encode(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PIECE_CHARS", size)
        assert VOCABULARY.encode(text).tolist() == whole


def test_bpe_to_dict_round_trips_through_json():
    restored = vocabulary_from_dict(json.loads(json.dumps(VOCABULARY.to_dict())))
    assert restored == VOCABULARY
    assert restored.encode(TEXT).tolist() == VOCABULARY.encode(TEXT).tolist()


def test_bpe_train_is_deterministic():
    assert BpeVocabulary.train([TEXT], vocab_size=300).fingerprint == VOCABULARY.fingerprint


def test_bpe_vocab_size_defaults_to_512_and_minimum_is_257():
    text = " ".join(f"{a}{b}{c} " * 2 for a in "abcdefgh" for b in "ijklmn" for c in "opqrst")
    assert len(BpeVocabulary.train([text])) == 512
    assert len(BpeVocabulary.train([text], vocab_size=257)) == 257
    with pytest.raises(ConfigError, match=r"vocab_size.* 256"):
        BpeVocabulary.train([text], vocab_size=256)


def test_bpe_train_skips_pairs_that_occur_once():
    assert len(BpeVocabulary.train(["ab cd ef"])) == 256


def test_bpe_encode_lone_surrogate_raises():
    with pytest.raises(SourceError, match="position 2"):
        VOCABULARY.encode("ab\ud800")


@pytest.mark.parametrize("tokenizer", [None, {}, "text", {"version": "1.0"}])
def test_bpe_from_dict_malformed_tokenizer_error_names_field(tokenizer):
    with pytest.raises(ConfigError, match="field 'tokenizer'"):
        vocabulary_from_dict({"kind": "bpe", "tokenizer": tokenizer})


def test_bpe_from_dict_rejects_tokenizer_not_byte_level():
    values = VOCABULARY.to_dict()
    values["tokenizer"]["model"]["vocab"]["中"] = len(VOCABULARY)
    with pytest.raises(ConfigError, match="not byte-level"):
        vocabulary_from_dict(values)


def test_bpe_train_without_tokenizers_error_names_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[bpe\]"):
        BpeVocabulary.train([TEXT])
