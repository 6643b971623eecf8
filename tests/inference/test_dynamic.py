"""Dynamic evaluation: the update rule, causality, and that the model is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurra import api
from recurra.config import ModelConfig
from recurra.errors import ConfigError, NonFiniteError, RunError, SourceError
from recurra.inference.dynamic import DynamicConfig, evaluate_dynamically
from recurra.inference.evaluate import evaluate
from recurra.model import RecurrentLM
from recurra.report.progress import Progress


def make(backend: str = "auto", **options: Any) -> RecurrentLM:
    torch.manual_seed(0)
    return RecurrentLM(ModelConfig(vocab_size=9, hidden_size=12, backend=backend, **options)).eval()  # type: ignore[arg-type]


def ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(9, size=length)


def test_evaluate_dynamically_zero_lr_equals_evaluate() -> None:
    model, text = make(), ids(333)
    config = DynamicConfig(lr=0.0, decay=0.0, segment=7)
    nats = evaluate_dynamically(model, text, ids(500), config)
    assert nats == pytest.approx(evaluate(model, text).total_nats, rel=1e-5)


def test_evaluate_dynamically_adapts_and_restores_model() -> None:
    model, text = make().train(), np.tile(ids(10), 60)
    before = [p.detach().clone() for p in model.parameters()]
    model.head_bias.grad = torch.ones(9)
    nats = evaluate_dynamically(model, text, ids(500), DynamicConfig(lr=5e-3))
    assert nats < 0.9 * evaluate(model, text).total_nats
    assert all(map(torch.equal, before, model.parameters()))
    assert model.training
    assert torch.equal(model.head_bias.grad, torch.ones(9))
    assert model.embedding.grad is None


def test_evaluate_dynamically_ignores_later_text() -> None:
    text = ids(200)
    other = np.concatenate([text[:101], ids(99, seed=5)])
    config = DynamicConfig(segment=10, lr=2e-3)
    cut = [evaluate_dynamically(make(), t[:101], ids(500), config) for t in (text, other)]
    assert cut[0] == cut[1]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_evaluate_dynamically_backends_agree(cell: str) -> None:
    config = DynamicConfig(segment=6, lr=1e-3)
    results = [
        evaluate_dynamically(make(backend, cell=cell, num_layers=2), ids(80), ids(300), config)
        for backend in ("reference", "auto")
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_evaluate_dynamically_step_follows_update_rule() -> None:
    """The second of two segments is predicted with weights that this test computes itself."""
    model, text, train = make("reference"), ids(13), ids(400)
    config = DynamicConfig(segment=6, lr=3e-3, decay=0.5)
    nats = evaluate_dynamically(model, text, train, config)
    first, second = (torch.from_numpy(part)[None] for part in (text[:7], text[6:]))
    parameters = list(model.parameters())
    squares = [torch.zeros_like(p) for p in parameters]
    random = np.random.default_rng(0)
    for _ in range(64):
        starts = random.integers(0, len(train) - 6, size=16)
        rows = torch.from_numpy(np.stack([train[s : s + 7] for s in starts]))
        grads = torch.autograd.grad(model.loss(rows[:, :-1], rows[:, 1:])[0], parameters)
        for square, grad in zip(squares, grads, strict=True):
            square += grad**2 / 64
    roots = [square.sqrt() for square in squares]
    mean = torch.cat([root.flatten() for root in roots]).mean()
    loss, state = model.loss(first[:, :-1], first[:, 1:])
    grads = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, grad, root in zip(parameters, grads, roots, strict=True):
            step = config.lr * grad / (root + 1e-3 * mean)
            parameter -= step.clamp(-10 * config.lr, 10 * config.lr)
        after, _ = model.loss(second[:, :-1], second[:, 1:], tuple(s.detach() for s in state))
    assert nats == pytest.approx(6 * float(loss.detach()) + 6 * float(after), rel=1e-5)


def test_evaluate_dynamically_invalid_input_raises() -> None:
    model = make()
    with pytest.raises(SourceError, match=r"\b2\b"):
        evaluate_dynamically(model, ids(1), ids(50), DynamicConfig())
    with pytest.raises(ConfigError, match="segment"):
        DynamicConfig(segment=0)
    with pytest.raises(ConfigError, match="lr"):
        DynamicConfig(lr=float("nan"))
    with torch.no_grad():
        model.head_bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\blr\b"):
        evaluate_dynamically(model, ids(500), ids(50), DynamicConfig())


def test_evaluate_dynamically_without_validation_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("what was, was; what is, is. " * 40, "utf-8")
    settings: dict[str, Any] = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "steps": 2}
    progress = Progress()
    lm = api.train(file, out=tmp_path / "r", val_fraction=0.0, progress=progress, **settings)
    assert lm.evaluate_dynamically("what is, was").num_tokens == 11
    with pytest.raises(RunError, match="validation"):
        lm.evaluate_dynamically()


@pytest.mark.parametrize("settings", [{"lr": "a"}, {"segment": 2.5}, {"decay": None}])
def test_dynamic_config_wrong_type_raises(settings: Any) -> None:
    with pytest.raises(ConfigError):
        DynamicConfig(**settings)
