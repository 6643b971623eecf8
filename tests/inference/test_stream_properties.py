"""Property test: `stream` and `generate` return the same text for any prompt and settings."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.config import ModelConfig
from recurra.inference.generate import GenerationConfig, generate, generate_ids, stream
from recurra.model import RecurrentLM
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.vocabulary import CharVocabulary, Vocabulary, WordVocabulary

pytest.importorskip("tokenizers", reason="the bpe extra is not installed")

from recurra.text.bpe import BpeVocabulary

TEXT = "the cat — 你好，你好！ don't שלום 🙂🙂 e\u0301\0\r\n\U0001f469\u200d\U0001f467 "
VOCABULARIES: dict[str, Vocabulary] = {
    "char": CharVocabulary.from_text(TEXT),
    "word": WordVocabulary.from_text(TEXT),
    "byte": ByteVocabulary(),
    "bpe": BpeVocabulary.train([TEXT * 5], vocab_size=290),
}


@functools.cache
def model_of(kind: str, cell: Any, fluent: bool) -> RecurrentLM:
    """Return a model with random weights; a fluent one prefers the tokens of TEXT."""
    vocabulary = VOCABULARIES[kind]
    torch.manual_seed(7)
    model = RecurrentLM(
        ModelConfig(cell=cell, vocab_size=len(vocabulary), hidden_size=6, embedding_size=3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        if fluent:
            model.head_bias[torch.from_numpy(vocabulary.encode(TEXT))] += 8
    return model.eval()


ANY_POSITIVE = st.floats(0, allow_infinity=False, exclude_min=True)
SETTINGS = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 24),
        "temperature": st.one_of(st.floats(0, 3), ANY_POSITIVE),
        "greedy": st.booleans(),
        "seed": st.integers(0, 2**63 - 1),
        "top_k": st.none() | st.integers(1, 300),
        "top_p": st.none() | st.floats(0, 1, exclude_min=True),
        "min_p": st.none() | st.floats(0, 1),
        "repetition_penalty": st.one_of(st.just(1.0), st.floats(0.5, 2), ANY_POSITIVE),
        "stop": st.lists(st.text(sorted({*TEXT, "\ufffd"}), min_size=1, max_size=2), max_size=3),
    }
)


def cut_by_hand(text: str, stop: tuple[str, ...]) -> str:
    """Return the text before the stop string that ends first (the longest of several)."""
    for end in range(1, len(text) + 1):
        if lengths := [len(s) for s in stop if text[:end].endswith(s)]:
            return text[: end - max(lengths)]
    return text


@pytest.mark.parametrize("kind", VOCABULARIES)
@settings(deadline=None, max_examples=50)
@given(
    cell=st.sampled_from(["gru", "none"]),
    fluent=st.booleans(),
    prompt=st.text(sorted(set(TEXT)), max_size=8),
    options=SETTINGS,
    stop_at=st.integers(0, 24),
)
def test_stream_joined_pieces_equal_generate(
    kind: str, cell: str, fluent: bool, prompt: str, options: dict[str, Any], stop_at: int
) -> None:
    model, vocabulary = model_of(kind, cell, fluent), VOCABULARIES[kind]
    config = GenerationConfig(**options)
    banned = [] if vocabulary.unknown_id is None else [vocabulary.unknown_id]
    steps = generate_ids(model, vocabulary.encode(prompt, "replace"), config, banned)
    ids = [int(chosen[0]) for chosen in steps]
    assert not set(ids) & set(banned)
    text = vocabulary.decode(ids)
    # A part of the generated text, which may cross token boundaries, as a stop string.
    if found := text[stop_at : stop_at + 3]:
        config = GenerationConfig(**options | {"stop": [*options["stop"], found]})
    pieces = list(stream(model, vocabulary, prompt, config, "replace"))
    assert ["".join(pieces)] == generate(model, vocabulary, prompt, config, "replace")
    assert "".join(pieces) == cut_by_hand(text, config.stop)
    assert all(pieces)
