"""The hidden size of a model with a given number of parameters."""

import dataclasses

import pytest
import torch

from recurra.config import ModelConfig
from recurra.config.cells import CELL_TRAITS
from recurra.model import RecurrentLM
from recurra.training.sizing import hidden_size_for, num_parameters

TARGET = 200_000


@pytest.mark.parametrize("cell", CELL_TRAITS)
def test_hidden_size_for_meets_the_target_for_every_cell(cell):
    def model_of(size):
        return ModelConfig(cell=cell, hidden_size=size, vocab_size=65, embedding_size=32)

    model = model_of(hidden_size_for(TARGET, model_of))
    assert num_parameters(model) == pytest.approx(TARGET, rel=0.02)
    with torch.device("meta"):
        assert RecurrentLM(model).num_parameters == num_parameters(model)


def test_hidden_size_for_prefers_multiples_of_sixteen():
    def model_of(size):
        return ModelConfig(cell="lstm", hidden_size=size, vocab_size=65, num_layers=2)

    for size in (16, 64, 96, 512):
        near = num_parameters(model_of(size)) * 1.01
        assert hidden_size_for(round(near), model_of) == size
    assert hidden_size_for(num_parameters(model_of(37)), model_of) == 37


@pytest.mark.parametrize("target", [1, 10**13])
def test_hidden_size_for_unreachable_target_is_the_nearest(target):
    model = ModelConfig(cell="rnn", vocab_size=65, embedding_size=0)
    size = hidden_size_for(target, lambda size: dataclasses.replace(model, hidden_size=size))
    assert size == (1 if target == 1 else 2**16)
