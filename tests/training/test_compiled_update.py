"""CompiledUpdate: parameters and optimizer state are compared with torch.optim."""

import math

import pytest
import torch

from recurra.config import ModelConfig, TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.engine.compiled_optimizer import CompiledUpdate
from recurra.engine.optimizers import build_optimizer
from recurra.kernels import library
from recurra.model import RecurrentLM

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

OPTIMIZER_OPTIONS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1},
]


def make():
    torch.manual_seed(0)
    return RecurrentLM(ModelConfig(cell="gru", vocab_size=37, hidden_size=13))


def set_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("options", OPTIMIZER_OPTIONS, ids=str)
def test_compiled_update_equals_torch_optimizer(options, threads):
    torch.set_num_threads(threads)
    config = TrainingConfig(steps=1, **options)
    ours, theirs = make(), make()
    compiled, plain = build_optimizer(ours, config), build_optimizer(theirs, config)
    update = CompiledUpdate(compiled, OPTIMIZERS[config.optimizer])
    for step in range(1, 6):
        for model in (ours, theirs):
            set_gradients(model, step)
        norm = update.gradient_norm()
        expected = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters()])
        assert norm == pytest.approx(float(expected), rel=1e-6)
        for parameter in theirs.parameters():
            parameter.grad.mul_(0.5)
        for group in plain.param_groups:
            group["lr"] = 0.1 / step
        plain.step()
        update.step(0.1 / step, 0.5)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)
    found, expected = compiled.state_dict()["state"], plain.state_dict()["state"]
    for index, state in expected.items():
        for name, value in state.items():
            if value is None:
                continue
            torch.testing.assert_close(found[index][name], value, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_compiled_update_bad_gradient_gives_non_finite_norm(bad):
    model = make()
    set_gradients(model, 0)
    model.head_weight.grad[-1, -1] = bad
    optimizer = build_optimizer(model, TrainingConfig(steps=1))
    update = CompiledUpdate(optimizer, OPTIMIZERS["adamw"])
    assert not math.isfinite(update.gradient_norm())
