"""`compiled_cross_entropy` against `cross_entropy`: loss and all gradients."""

import pytest
import torch

from recurra.errors import ConfigError
from recurra.kernels import buffers, library
from recurra.model.output_layer import compiled_cross_entropy, cross_entropy

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

SHAPES = [(1, 1, 1), (7, 5, 3), (33, 17, 65), (64, 256, 28), (50, 64, 1027), (2100, 8, 30)]
PRECISIONS = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


@pytest.fixture(autouse=True)
def _poison_buffers(monkeypatch):
    taken = buffers.BUFFER_POOL._take
    monkeypatch.setattr(
        buffers.BUFFER_POOL, "_take", lambda n, like: taken(n, like).fill_(float("nan"))
    )


def _make_case(rows, units, vocabulary):
    torch.manual_seed(0)
    hidden = torch.randn(rows, units, requires_grad=True)
    weight = (torch.randn(vocabulary, units) / units**0.5).requires_grad_()
    bias = torch.randn(vocabulary, requires_grad=True)
    return (hidden, weight, bias), torch.randint(vocabulary, (rows,))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_cross_entropy_equals_cross_entropy(shape, threads, dtype, tolerance):
    torch.set_num_threads(threads)
    leaves, targets = _make_case(*shape)
    results = []
    for function in (compiled_cross_entropy, cross_entropy):
        loss = function(*leaves, targets, dtype)
        results.append((loss.detach(), *torch.autograd.grad(3 * loss, leaves)))
    for actual, expected in zip(*results, strict=True):
        largest = max(float(expected.abs().max()), 1e-6)
        assert float((actual - expected).abs().max()) <= tolerance * largest


def test_compiled_cross_entropy_second_derivatives_are_equal():
    leaves, targets = _make_case(9, 6, 5)
    results = []
    for function in (compiled_cross_entropy, cross_entropy):
        loss = function(*leaves, targets, torch.float32)
        (slope,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), leaves))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_compiled_cross_entropy_target_out_of_range_raises():
    leaves, targets = _make_case(4, 3, 5)
    for wrong in (-1, 5):
        targets[2] = wrong
        with pytest.raises(IndexError, match="between 0 and 4"):
            compiled_cross_entropy(*leaves, targets, torch.float32)


@pytest.mark.parametrize("place", range(3))
def test_compiled_cross_entropy_propagates_nan(place):
    leaves, targets = _make_case(20, 40, 30)
    with torch.no_grad():
        leaves[place].view(-1)[-1] = float("nan")
    assert compiled_cross_entropy(*leaves, targets, torch.float32).isnan()


def test_compiled_cross_entropy_checks_dtypes_and_shapes():
    (hidden, weight, bias), targets = _make_case(6, 4, 5)
    expected = compiled_cross_entropy(hidden, weight, bias, targets, torch.float32)
    int32_targets = targets.to(torch.int32)
    assert compiled_cross_entropy(hidden, weight, bias, int32_targets, torch.float32) == expected
    for wrong in ((hidden.double(), weight, bias), (hidden, weight, bias.double())):
        with pytest.raises(ConfigError, match="fp32"):
            compiled_cross_entropy(*wrong, targets, torch.float32)
    for wrong in ((hidden[:, 1:], weight, bias), (hidden, weight, bias[1:])):
        with pytest.raises(ConfigError, match="do not fit"):
            compiled_cross_entropy(*wrong, targets, torch.float32)
    with pytest.raises(ConfigError, match="as many targets"):
        compiled_cross_entropy(hidden, weight, bias, targets[1:], torch.float32)
