"""The compiled engine and gradients for supported models; autograd and a log otherwise."""

import logging

import pytest
import torch

from recurra.config import ModelConfig, TrainingConfig
from recurra.config.optimizers import OPTIMIZERS, OptimizerSpec
from recurra.engine import select
from recurra.engine.autograd import AutogradEngine, AutogradGradients
from recurra.engine.compiled import CompiledEngine
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.engine.select import select_engine, select_gradients
from recurra.kernels import library
from recurra.model import RecurrentLM
from recurra.runtime.distributed import Processes

needs_kernels = pytest.mark.skipif(not library.is_available(), reason="no compiled kernels")


def make(cell="lstm", backend="native"):
    torch.manual_seed(0)
    return RecurrentLM(
        ModelConfig(cell=cell, hidden_size=8, vocab_size=11, embedding_size=4, backend=backend)
    )


@needs_kernels
def test_select_gradients_supported_model_returns_compiled():
    assert isinstance(select_gradients(make()), CompiledGradients)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "reference"}, "set to reference"),
        ({"cell": "mingru", "backend": "auto"}, "not mingru"),
    ],
)
def test_select_gradients_unsupported_logs_reason(options, reason, caplog):
    select._logged.clear()
    with caplog.at_level(logging.INFO, logger="recurra"):
        selected = select_gradients(make(**options))
    assert isinstance(selected, AutogradGradients)
    assert reason in caplog.text


@needs_kernels
def test_select_engine_optimizer_without_kernel_uses_autograd(monkeypatch, caplog):
    select._logged.clear()
    row = OptimizerSpec("support.toy_optimizer:SignMomentum", ("momentum",), slots=("mean",))
    monkeypatch.setitem(OPTIMIZERS, "sign-momentum", row)
    config = TrainingConfig(optimizer="sign-momentum", steps=1)
    with caplog.at_level(logging.INFO, logger="recurra"):
        assert isinstance(select_engine(make(), config), AutogradEngine)
    assert "no update for sign-momentum" in caplog.text
    assert isinstance(select_engine(make(), TrainingConfig()), CompiledEngine)


@needs_kernels
def test_select_engine_two_processes_uses_autograd(caplog):
    select._logged.clear()
    with caplog.at_level(logging.INFO, logger="recurra"):
        engine = select_engine(make(), TrainingConfig(), Processes(count=2))
    assert isinstance(engine, AutogradEngine)
    assert "single process" in caplog.text


@needs_kernels
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_gradients_compiled_and_autograd_agree(cell, weight):
    model = make(cell)
    ids, targets = torch.randint(11, (2, 3, 7)).unbind()
    found = []
    for kind in (AutogradGradients, CompiledGradients):
        loss, state = kind(model).compute(ids, targets, recurrent_gradient_scale=0.5, weight=weight)
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad(set_to_none=True)
        found.append([torch.tensor(loss), *state, *gradients])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-5, atol=1e-6)
