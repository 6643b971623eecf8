"""Untrusted BPE vocabularies raise a ConfigError; other tokenizer fields are ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from recurra.errors import ConfigError
from recurra.text.vocabularies import vocabulary_from_dict


@pytest.fixture(scope="session")
def bpe_values() -> dict[str, Any]:
    pytest.importorskip("tokenizers", reason="the bpe extra is not installed")
    from recurra.text.bpe import BpeVocabulary

    return BpeVocabulary.train(["the cat sat on the mat " * 9], vocab_size=262).to_dict()


def vocab(values: dict[str, Any]) -> dict[str, int]:
    ids: dict[str, int] = values["tokenizer"]["model"]["vocab"]
    return ids


def merges(values: dict[str, Any]) -> list[Any]:
    pairs: list[Any] = values["tokenizer"]["model"]["merges"]
    return pairs


BPE_CORRUPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model": (lambda v: v["tokenizer"].pop("model"), "tokenizer'.* model"),
    "no vocab": (lambda v: v["tokenizer"]["model"].pop("vocab"), "vocab' must have 256 to"),
    "one token": (
        lambda v: v["tokenizer"]["model"].update(vocab={"a": 0}),
        "vocab' must have 256 to",
    ),
    "a token outside the byte alphabet": (
        lambda v: vocab(v).update({"中": 262}),
        "byte-level",
    ),
    "an empty token": (lambda v: vocab(v).update({"": 262}), "not byte-level"),
    "a byte without a token": (
        lambda v: vocab(v).update(zz=vocab(v).pop("z")),
        "lacks the byte 122",
    ),
    "a duplicate id": (lambda v: vocab(v).update({"at": 3}), "the id 3;"),
    "an id too large": (
        lambda v: vocab(v).update({"at": 2**40}),
        "'at' the id 1099511627776",
    ),
    "an id of true": (
        lambda v: vocab(v).update({"at": True}),
        "'at' the id True",
    ),
    "a negative id": (lambda v: vocab(v).update({"at": -1}), "the id -1"),
    "no merges": (lambda v: v["tokenizer"]["model"].pop("merges"), "merges' is not a list"),
    "a merge of one token": (
        lambda v: merges(v).append(["a"]),
        r"merges' has \['a'\], which is not a pair",
    ),
    "a merge that is a string": (
        lambda v: merges(v).append("a t"),
        "merges' has 'a t', which is not a pair",
    ),
    "a merge of an unknown token": (
        lambda v: merges(v).append(["a", "zzz"]),
        "which is not a pair",
    ),
    "a merge without a token": (
        lambda v: merges(v).append(["z", "z"]),
        "is not a token",
    ),
}


@pytest.mark.parametrize("name", BPE_CORRUPTIONS)
def test_bpe_vocabulary_corrupted_field_raises_config_error(
    bpe_values: dict[str, Any], name: str
) -> None:
    values = json.loads(json.dumps(bpe_values))
    change, message = BPE_CORRUPTIONS[name]
    change(values)
    with pytest.raises(ConfigError, match=f"^vocabulary field '.*{message}"):
        vocabulary_from_dict(values)


def test_bpe_vocabulary_ignores_other_tokenizer_fields(bpe_values: dict[str, Any]) -> None:
    """The library aborts on some of these fields, so they must not reach it."""
    expected = vocabulary_from_dict(bpe_values)
    values = json.loads(json.dumps(bpe_values))
    values["tokenizer"] |= {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"},
        "pre_tokenizer": {"type": "Split"},
        "added_tokens": [{"id": 7, "content": "cat"}],
        "truncation": {"max_length": 1},
    }
    values["tokenizer"]["model"] |= {"dropout": 0.9, "unk_token": "zz", "byte_fallback": True}
    again = vocabulary_from_dict(values)
    assert again == expected
    assert again.to_dict() == bpe_values
    assert again.encode("the cat sat").tolist() == expected.encode("the cat sat").tolist()
