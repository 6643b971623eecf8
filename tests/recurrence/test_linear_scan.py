"""`linear_scan`: values and gradients of every backend against those of `reference`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence.backends import linear_scan as linear_scan_module
from recurra.recurrence.backends.linear_scan import linear_scan

SHAPES = [(1, 1), (1, 5), (7, 3, 4), (13, 2, 65), (40, 3, 129), (5, 1, 1024)]
AVAILABLE_BACKENDS = ["reference", "bptt"]
if library.is_available():
    AVAILABLE_BACKENDS.append("native")
if torch.cuda.is_available():
    # `test_triton_scan.py` runs this backend on a CPU.
    AVAILABLE_BACKENDS.append("triton-cuda")


def make(shape, dtype):
    torch.manual_seed(0)
    a = torch.rand(shape, dtype=dtype, requires_grad=True)
    b = torch.randn(shape, dtype=dtype, requires_grad=True)
    initial = torch.randn(shape[1:], dtype=dtype, requires_grad=True)
    return a, b, initial


def scan(a, b, initial, backend, **options):
    """Return the result on the CPU; the name of a backend can end with a device."""
    name, _, device = backend.partition("-")
    given = (tensor.to(device or "cpu") for tensor in (a, b, initial))
    return linear_scan(*given, name, **options).cpu()


def outcome(leaves, backend, scale=1.0):
    outputs = scan(*leaves, backend, recurrent_gradient_scale=scale)
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
    whole = scan(a, b, initial, backend)
    first = scan(a[:4], b[:4], initial, backend)
    second = scan(a[4:], b[4:], first[-1], backend)
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
    with pytest.raises(ConfigError, match="reference, bptt, native, triton"):
        linear_scan(a, b, initial, "cuda")


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("backend", AVAILABLE_BACKENDS)
def test_linear_scan_propagates_nan(backend, place):
    leaves = [t.detach().clone() for t in make((5, 70), torch.float32)]
    leaves[place].view(-1)[-1] = float("nan")
    assert scan(*leaves, backend)[-1, -1].isnan()


def test_scan_inside_transforms_equals_reference():
    a, b = torch.rand(5, 3), torch.randn(5, 3)
    expected = torch.autograd.functional.jacobian(
        lambda a: linear_scan(a, b, backend="reference"), a
    )
    assert torch.allclose(torch.func.jacrev(lambda a: linear_scan(a, b))(a), expected)
    batched = torch.autograd.functional.jacobian(lambda a: linear_scan(a, b), a, vectorize=True)
    assert torch.allclose(batched, expected)


def test_scan_in_dispatch_mode_equals_reference():
    leaves = make((5, 3), torch.float32)
    with FlopCounterMode(display=False):  # It must see torch's operators.
        found = outcome(leaves, "auto")
    assert_same(found, outcome(leaves, "reference"), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", [(35, 32, 256), (2000, 1, 300)], ids=str)
def test_scan_in_cuda_graph_equals_plain_loop(shape):
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.rand(shape, device="cuda", generator=generator, requires_grad=True)
    b = torch.randn(shape, device="cuda", generator=generator, requires_grad=True)

    def compute(backend):
        outputs = linear_scan(a, b, None, backend)
        return [outputs, *torch.autograd.grad(outputs.square().sum(), (a, b))]

    assert linear_scan_module.choose_backend(a, b, b[0]) == "triton"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute("auto")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compute("auto")
    with torch.no_grad():
        a.copy_(torch.rand(shape, device="cuda", generator=generator))
    graph.replay()
    assert_same(found, compute("bptt"), 1e-5)
