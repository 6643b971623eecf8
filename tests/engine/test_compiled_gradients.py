"""CompiledGradients: loss and gradients of a whole model, compared with autograd."""

import pytest
import torch

from recurra.config import ModelConfig
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.model import RecurrentLM

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

MODELS = {
    "one-hot": {},
    "small vocabulary": {"embedding_size": 6},
    "large vocabulary": {"embedding_size": 6, "vocab_size": 90},
    "layers": {"num_layers": 3, "embedding_size": 7},
    "dropout": {"num_layers": 2, "dropout": 0.4},
    "output dropout": {"output_dropout": 0.3},
    "locked dropout": {
        "num_layers": 2,
        "dropout": 0.4,
        "output_dropout": 0.2,
        "locked_dropout": True,
    },
    "weight dropout": {"num_layers": 2, "weight_dropout": 0.3, "dropout": 0.2},
    "tied": {"embedding_size": 12, "tie_weights": True},
    "tied large": {"embedding_size": 12, "tie_weights": True, "vocab_size": 90},
    "blocks": {"embedding_size": 6, "vocab_size": 4099, "output_dropout": 0.3},
    "tied blocks": {"embedding_size": 12, "tie_weights": True, "vocab_size": 4099},
}
BATCH, STEPS = 5, 9


def make(cell, backend, **options):
    sizes = {"vocab_size": 17, "hidden_size": 12, "embedding_size": 0} | options
    torch.manual_seed(0)
    return RecurrentLM(ModelConfig(cell=cell, backend=backend, **sizes))


def batch(model):
    generator = torch.Generator().manual_seed(1)
    size = (BATCH, STEPS)
    ids, targets = (
        torch.randint(model.config.vocab_size, size, generator=generator) for _ in range(2)
    )
    state = tuple(
        torch.randn(part.shape, generator=generator).mul_(0.5) for part in model.zero_state(BATCH)
    )
    return ids, targets, state


def poison(compiled):
    """Fill all buffers with invalid values, so that a value of an earlier batch is detected."""
    for pool in (compiled._buffers, *compiled._layer_buffers):
        for tensor in pool.buffers.values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


def by_autograd(model, weight, scale):
    """Return loss, final state and gradients of `batch`, computed by autograd."""
    ids, targets, state = batch(model)
    torch.manual_seed(2)
    loss, after = model.loss(ids, targets, state, recurrent_gradient_scale=scale)
    gradients = torch.autograd.grad(loss * weight, list(model.parameters()))
    return float(loss.detach()), [a.detach() for a in after], list(gradients)


def compiled(model, weight, scale):
    """Return loss, final state and gradients of `batch`, computed after other batches.

    The earlier batches have other tokens, another state and other weights.
    """
    ids, targets, state = batch(model)
    compiled = CompiledGradients(model)
    parameters = list(model.parameters())
    with torch.no_grad():
        torch._foreach_mul_(parameters, 2.0)
        compiled.compute(targets, ids, tuple(-part for part in state))
        compiled.compute(targets, ids, state, recurrent_gradient_scale=scale, weight=3.0)
        torch._foreach_mul_(parameters, 0.5)
    poison(compiled)
    torch.manual_seed(2)
    loss, after = compiled.compute(
        ids, targets, state, recurrent_gradient_scale=scale, weight=weight
    )
    return loss, list(after), [p.grad for p in parameters]


def test_compiled_gradients_use_reallocated_parameters():
    model = make("lstm", "native")
    ids, targets, _ = batch(model)
    compiled = CompiledGradients(model)
    loss, _ = compiled.compute(ids, targets)
    expected = [p.grad.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.data.clone(), None
    again, _ = compiled.compute(ids, targets)
    assert again == loss
    assert all(map(torch.equal, expected, [p.grad for p in model.parameters()]))


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("cell", ["rnn", "rnn-relu", "gru", "lstm"])
def test_compiled_gradients_equal_autograd(cell, options):
    expected = by_autograd(make(cell, "reference", **options), 0.7, 0.8)
    actual = compiled(make(cell, "native", **options), 0.7, 0.8)
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    for found, wanted in zip(actual[1] + actual[2], expected[1] + expected[2], strict=True):
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_compiled_gradients_bf16_are_close_to_fp32(options):
    expected = by_autograd(make("lstm", "reference", **options), 1.0, 1.0)
    actual = compiled(make("lstm", "native", precision="bf16", **options), 1.0, 1.0)
    assert actual[0] == pytest.approx(expected[0], rel=1e-2)
    for found, wanted in zip(actual[1] + actual[2], expected[1] + expected[2], strict=True):
        assert float((found - wanted).abs().max()) <= 0.1 * float(wanted.abs().max())


def test_compiled_gradients_shorter_windows_reuse_buffers():
    model = make("lstm", "native", num_layers=2)
    ids, targets, _ = batch(model)
    compiled = CompiledGradients(model)
    sizes = []
    for steps in (STEPS, 1, 4, STEPS, 7):
        compiled.compute(ids[:, :steps], targets[:, :steps])
        pools = (compiled._buffers, *compiled._layer_buffers)
        sizes.append(sum(b.nbytes for pool in pools for b in pool.buffers.values()))
    assert len(set(sizes)) == 1


def test_compiled_gradients_id_out_of_range_raises():
    model = make("gru", "native")
    ids, targets, _ = batch(model)
    for invalid in (-1, 17):
        ids[2, 3] = invalid
        with pytest.raises(IndexError, match=r"\b16\b"):
            CompiledGradients(model).compute(ids, targets)


def test_compiled_gradients_accept_int32_reject_short_targets():
    model = make("gru", "native")
    ids, targets, _ = batch(model)
    loss, _ = CompiledGradients(model).compute(ids, targets)
    narrow, _ = CompiledGradients(model).compute(ids.to(torch.int32), targets.to(torch.int32))
    assert narrow == loss
    for few in (targets[1:], targets[:, 1:]):
        with pytest.raises(ConfigError, match="targets"):
            CompiledGradients(model).compute(ids, few)


def test_compiled_gradients_unsupported_model_gives_reason():
    assert CompiledGradients.unsupported(make("gru", "native")) is None
    assert CompiledGradients.unsupported(make("gru", "bptt")) is not None
    assert CompiledGradients.unsupported(make("none", "native")) is not None
    assert CompiledGradients.unsupported(make("gru", "native").double()) is not None
    frozen = make("gru", "native")
    frozen.head_bias.requires_grad_(False)
    assert CompiledGradients.unsupported(frozen) is not None
