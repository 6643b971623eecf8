"""Models and vocabularies that the tests in this directory share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from recurra.config import ModelConfig
from recurra.model import RecurrentLM
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.vocabulary import CharVocabulary, Vocabulary


@pytest.fixture
def characters() -> Callable[[str], Vocabulary]:
    """A function that builds a char vocabulary of a text: `<unk>`, then the sorted characters."""
    return lambda text: CharVocabulary(sorted(set(text)))


@pytest.fixture
def byte_vocabulary() -> Vocabulary:
    """A vocabulary of the 256 bytes."""
    return ByteVocabulary()


@pytest.fixture
def make_model() -> Callable[..., RecurrentLM]:
    """A function that builds a small model with large weights, so that predictions differ."""

    def make(vocab_size: int, cell: Any = "gru", seed: int = 1, **options: Any) -> RecurrentLM:
        torch.manual_seed(seed)
        config = ModelConfig(
            cell=cell, vocab_size=vocab_size, hidden_size=12, embedding_size=0, **options
        )
        model = RecurrentLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)
        return model.eval()

    return make


@pytest.fixture
def make_periodic_model() -> Callable[..., RecurrentLM]:
    """A function that builds a model that predicts id + 1 after id, and 0 after the last id."""

    def make(vocab_size: int, sharpness: float = 40.0) -> RecurrentLM:
        config = ModelConfig(
            cell="none", vocab_size=vocab_size, hidden_size=vocab_size, embedding_size=0
        )
        model = RecurrentLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.weight_ih_l0.copy_(10 * torch.eye(vocab_size))
            model.head_weight.copy_(sharpness * torch.eye(vocab_size).roll(1, dims=0))
        return model.eval()

    return make
