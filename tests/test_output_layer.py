"""`compiled_cross_entropy` against `cross_entropy`: loss and all gradients."""

import math
import subprocess
import sys

import pytest
import torch

from recurra.errors import ConfigError
from recurra.kernels import buffers, library
from recurra.model import output_layer
from recurra.model.output_layer import compiled_cross_entropy, compiled_nats, cross_entropy

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

SHAPES = [(1, 1, 1), (7, 5, 3), (33, 17, 65), (64, 256, 28), (50, 64, 1027), (2100, 8, 30)]
LARGE_SHAPES = [
    (1, 1, 1), (5, 3, 2), (257, 33, 31), (300, 64, 33), (31, 7, 1027), (600, 40, 129),
    (70, 16, 5001), (9, 5, 50_000),
]  # fmt: skip
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
    _check_loss_and_gradients(shape, threads, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2, 5, 16])
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
def test_compiled_cross_entropy_in_blocks_equals_cross_entropy(
    shape, threads, dtype, tolerance, in_blocks
):
    _check_loss_and_gradients(shape, threads, dtype, tolerance)


@pytest.fixture
def in_blocks(monkeypatch):
    """Compute every vocabulary as a large one."""
    monkeypatch.setattr(output_layer, "LARGE_VOCABULARY", 1)


def _check_loss_and_gradients(shape, threads, dtype, tolerance):
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


@pytest.mark.parametrize("vocabulary", [5, 4099])
def test_compiled_cross_entropy_target_out_of_range_raises(vocabulary):
    leaves, targets = _make_case(4, 3, vocabulary)
    for wrong in (-1, vocabulary):
        targets[2] = wrong
        with pytest.raises(IndexError, match=f"between 0 and {vocabulary - 1}"):
            compiled_cross_entropy(*leaves, targets, torch.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("vocabulary", [30, 4099])
@pytest.mark.parametrize("place", range(3))
def test_compiled_cross_entropy_propagates_nan(place, vocabulary, value):
    leaves, targets = _make_case(20, 40, vocabulary)
    with torch.no_grad():
        leaves[place].view(-1)[-1] = value
    assert not compiled_cross_entropy(*leaves, targets, torch.float32).isfinite()


def test_compiled_cross_entropy_logits_of_minus_infinity_are_left_out():
    # A whole slice of 128 entries has no finite logit.
    leaves, targets = _make_case(20, 8, 4099)
    with torch.no_grad():
        leaves[2][:300] = -math.inf
    targets.clamp_(min=300)
    losses = [f(*leaves, targets, torch.float32) for f in (compiled_cross_entropy, cross_entropy)]
    torch.testing.assert_close(*losses)


def test_compiled_cross_entropy_second_backward_is_equal(in_blocks):
    leaves, targets = _make_case(70, 6, 40)
    loss = compiled_cross_entropy(*leaves, targets, torch.float32)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for gradient in first:
        gradient.mul_(2.0)
    second = torch.autograd.grad(loss, leaves)
    for doubled, gradient in zip(first, second, strict=True):
        torch.testing.assert_close(doubled, 2 * gradient)


def test_compiled_cross_entropy_repeated_gives_equal_bits(in_blocks):
    torch.set_num_threads(3)
    leaves, targets = _make_case(600, 24, 5001)
    results = [
        torch.autograd.grad(compiled_cross_entropy(*leaves, targets, torch.float32), leaves)
        for _ in range(3)
    ]
    for again in results[1:]:
        assert all(map(torch.equal, results[0], again))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["f32", "bf16"])
def test_compiled_nats_equal_the_losses_of_rows(dtype, tolerance):
    (hidden, weight, bias), targets = (t for t in _make_case(300, 20, 4099))
    tensors = [t.detach() for t in (hidden, weight, bias)]
    nats = compiled_nats(*tensors, targets, dtype)
    logits = output_layer.logits(*tensors, dtype).double()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert nats.dtype == torch.float64
    torch.testing.assert_close(nats, expected, rtol=tolerance, atol=tolerance)


def test_compiled_nats_of_equal_logits_are_exactly_log_v():
    hidden, weight, bias = torch.zeros(3, 4), torch.zeros(5001, 4), torch.ones(5001)
    nats = compiled_nats(hidden, weight, bias, torch.tensor([0, 17, 5000]), torch.float32)
    assert nats.tolist() == [math.log(5001)] * 3


_PEAK = """
import pathlib, sys, torch
from recurra.model.output_layer import compiled_cross_entropy
rows, vocabulary = int(sys.argv[1]), 50_000
hidden = torch.randn(rows, 8, requires_grad=True)
weight = torch.randn(vocabulary, 8, requires_grad=True)
bias = torch.zeros(vocabulary, requires_grad=True)
targets = torch.randint(vocabulary, (rows,))
torch.autograd.backward(compiled_cross_entropy(hidden, weight, bias, targets, torch.float32))
print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
def test_compiled_cross_entropy_memory_does_not_depend_on_rows():
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", _PEAK, str(rows)])) * 1024
        for rows in (1000, 4000)
    )
    # All logits would be 600 MB more.
    assert many - few < 50e6


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
