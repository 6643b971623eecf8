"""`linear_scan`: values and gradients of every backend against those of `reference`."""

import pytest
import torch

from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence.backends.linear_scan import BACKENDS, linear_scan

SHAPES = [(1, 1), (1, 5), (7, 3, 4), (13, 2, 65), (40, 3, 129), (5, 1, 1024)]
AVAILABLE_BACKENDS = [b for b in BACKENDS if b != "native" or library.is_available()]


def make(shape, dtype):
    torch.manual_seed(0)
    a = torch.rand(shape, dtype=dtype, requires_grad=True)
    b = torch.randn(shape, dtype=dtype, requires_grad=True)
    initial = torch.randn(shape[1:], dtype=dtype, requires_grad=True)
    return a, b, initial


def outcome(leaves, backend, scale=1.0):
    outputs = linear_scan(*leaves, backend, recurrent_gradient_scale=scale)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((outputs * weights).sum(), leaves)
    return [outputs.detach(), *gradients]


def assert_same(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        scale = max(float(other.detach().abs().max()), 1e-30)
        assert float((one - other).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("scale", [1.0, 0.0, 0.7])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", AVAILABLE_BACKENDS)
def test_linear_scan_backend_equals_reference(backend, shape, threads, scale):
    torch.set_num_threads(threads)
    leaves = make(shape, torch.float32)
    expected = outcome(leaves, "reference", scale)
    assert_same(outcome(leaves, backend, scale), expected, 1e-5)


def test_linear_scan_reference_equals_equation():
    a, b, initial = make((6, 2, 3), torch.float64)
    state = initial
    for t, h in enumerate(linear_scan(a, b, initial, "reference")):
        state = a[t] * state + b[t]
        assert torch.equal(h, state)
    assert torch.equal(linear_scan(a, b, None, "bptt"), linear_scan(a, b, 0 * initial, "bptt"))


def test_linear_scan_passes_gradcheck():
    leaves = make((5, 2, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda *x: linear_scan(*x, "bptt"), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: linear_scan(*x, "bptt"), leaves)


@pytest.mark.parametrize("backend", AVAILABLE_BACKENDS)
def test_linear_scan_two_halves_equal_whole_sequence(backend):
    a, b, initial = make((9, 2, 3), torch.float32)
    whole = linear_scan(a, b, initial, backend)
    first = linear_scan(a[:4], b[:4], initial, backend)
    second = linear_scan(a[4:], b[4:], first[-1], backend)
    assert_same([torch.cat([first, second])], [whole], 1e-6)


def test_linear_scan_auto_selects_supported_backend(monkeypatch):
    for dtype in (torch.float32, torch.float64):
        leaves = make((5, 2, 3), dtype)
        assert_same(outcome(leaves, "auto"), outcome(leaves, "reference"), 1e-5)
    monkeypatch.setattr(library, "is_available", lambda: False)
    assert_same(outcome(leaves, "auto"), outcome(leaves, "bptt"), 0)


def test_linear_scan_wrong_shape_or_backend_raises():
    a, b, initial = make((5, 2, 3), torch.float64)
    for wrong in ((a[1:], b, initial), (a, b, initial[1:]), (a[:0], b[:0], initial)):
        with pytest.raises(ConfigError, match="one shape"):
            linear_scan(*wrong)
    with pytest.raises(ConfigError, match="fp32"):
        linear_scan(a, b, initial, "native")
    with pytest.raises(ConfigError, match="reference, bptt, native"):
        linear_scan(a, b, initial, "cuda")


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("backend", AVAILABLE_BACKENDS)
def test_linear_scan_propagates_nan(backend, place):
    leaves = [t.detach().clone() for t in make((5, 70), torch.float32)]
    leaves[place].view(-1)[-1] = float("nan")
    assert linear_scan(*leaves, backend)[-1, -1].isnan()


def test_scan_inside_transforms_equals_reference():
    a, b = torch.rand(5, 3), torch.randn(5, 3)
    expected = torch.autograd.functional.jacobian(
        lambda a: linear_scan(a, b, backend="reference"), a
    )
    assert torch.allclose(torch.func.jacrev(lambda a: linear_scan(a, b))(a), expected)
    batched = torch.autograd.functional.jacobian(lambda a: linear_scan(a, b), a, vectorize=True)
    assert torch.allclose(batched, expected)
