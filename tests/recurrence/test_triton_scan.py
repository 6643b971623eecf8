"""Triton's linear scan against `reference` in Triton's interpreter on a CPU, and its selection."""

import importlib
import logging

import numpy
import pytest
import torch

from recurra.config.cells import CELL_TRAITS
from recurra.errors import ConfigError
from recurra.recurrence import layer
from recurra.recurrence.backends import linear_scan as scan_module
from recurra.recurrence.backends import time_batched, triton_scan
from recurra.recurrence.backends.linear_scan import linear_scan
from recurra.recurrence.cells import LinearCell, find_cell
from support.layers import assert_same, leaves_of, make_layer

CUDA = torch.device("cuda", 0)
LINEAR_CELLS = [name for name in CELL_TRAITS if isinstance(find_cell(name), LinearCell)]

SHAPES = [(1, 1), (1, 5), (7, 3, 4), (5, 65), (17, 1)]
CHUNKS = [None, 3]
"""Numbers of steps of a chunk; None does not divide the sequence."""


@pytest.fixture(scope="module")
def interpreter():
    """Yield the module of the kernels, defined for the interpreter, with AHEAD = 4."""
    reason = "Triton is not installed; torch brings it with CUDA, and the extra dev elsewhere"
    language = pytest.importorskip("triton.language", reason=reason)
    version = importlib.import_module("triton").__version__
    if tuple(map(int, version.split(".")[:2])) < (3, 7):
        pytest.skip(f"the interpreter of Triton {version} fails with NumPy 2.4; 3.7 is needed")
    kernels = importlib.import_module("recurra.recurrence.backends.scan_kernels")
    with pytest.MonkeyPatch.context() as patch:
        # Triton reads the variable when a kernel is defined.
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.reload(kernels)
        # The interpreter also computes the steps that are masked, at 3 ms each.
        patch.setattr(kernels, "AHEAD", language.constexpr(4))
        patch.setattr(triton_scan, "_reasons", {torch.device("cpu"): None})
        yield kernels
    importlib.reload(kernels)


@pytest.fixture
def chunked(request, monkeypatch):
    """Divide every sequence into chunks with the parameter of the fixture as number of steps."""
    if request.param is not None:
        monkeypatch.setattr(triton_scan, "chunk_length", lambda *size: request.param)


def make(shape):
    torch.manual_seed(0)
    a, b = 2.0 * torch.rand(shape) - 1.0, torch.randn(shape)
    return [t.requires_grad_() for t in (a, b, torch.randn(shape[1:]))]


def outcome(leaves, backend, scale=1.0):
    outputs = linear_scan(*leaves, backend, recurrent_gradient_scale=scale)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    return [outputs.detach(), *torch.autograd.grad((outputs * weights).sum(), leaves)]


@pytest.mark.parametrize("chunked", CHUNKS, indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_scan_equals_reference(shape, chunked, interpreter):
    leaves = make(shape)
    found, expected = (outcome(leaves, backend, 0.7) for backend in ("triton", "reference"))
    assert_same(found, expected, 1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("chunked", CHUNKS, indirect=True)
def test_triton_scan_gradient_scale_equals_reference(chunked, scale, interpreter):
    leaves = make((5, 3))
    found, expected = (outcome(leaves, backend, scale) for backend in ("triton", "reference"))
    assert_same(found, expected, 1e-6)


def test_triton_scan_1000_columns_equal_reference(interpreter):
    leaves = make((2, 1000))
    assert_same(outcome(leaves, "triton"), outcome(leaves, "reference"), 1e-6)


def test_triton_scan_all_loaded_steps_equal_reference(interpreter, monkeypatch):
    monkeypatch.setattr(interpreter, "AHEAD", type(interpreter.AHEAD)(16))
    leaves = make((37, 2))
    assert_same(outcome(leaves, "triton"), outcome(leaves, "reference"), 1e-6)


def test_triton_scan_no_columns_equals_reference(interpreter):
    leaves = make((5, 0))
    assert [t.shape for t in outcome(leaves, "triton")] == [(5, 0), (5, 0), (5, 0), (0,)]


@pytest.mark.parametrize("chunked", CHUNKS, indirect=True)
def test_triton_scan_noncontiguous_tensors_equal_reference(chunked, interpreter):
    a, b, initial = (t.detach() for t in make((3, 7, 4)))
    views = (a.transpose(0, 1), b.flip(0).transpose(0, 1), initial[0].expand(3, 4))
    leaves = [t.requires_grad_() for t in views]
    assert not any(t.is_contiguous() for t in leaves)
    results = []
    for backend in ("triton", "reference"):
        outputs = linear_scan(*leaves, backend)
        # The gradient of a sum is expanded from one number.
        results.append([outputs.detach(), *torch.autograd.grad(outputs.sum(), leaves)])
    assert_same(*results, 1e-6)


@pytest.mark.parametrize("chunked", CHUNKS, indirect=True)
def test_triton_scan_second_derivatives_equal_reference(chunked, interpreter):
    leaves = make((5, 3))
    results = []
    for backend in ("triton", "reference"):
        outputs = linear_scan(*leaves, backend)
        slopes = torch.autograd.grad(outputs.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), leaves))
    assert_same(*map(list, results), 1e-5)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("chunked", CHUNKS, indirect=True)
def test_triton_scan_nan_stays_in_its_column(place, chunked, interpreter):
    leaves = [t.detach().clone() for t in make((5, 3))]
    leaves[place].view(-1)[1] = float("nan")
    outputs = linear_scan(*leaves, "triton")
    assert outputs[-1].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("chunked", [4], indirect=True)
def test_triton_scan_overflow_of_coefficients_keeps_a_state_of_zero(chunked, interpreter):
    a, b = torch.full((12, 2), 1e20), torch.zeros(12, 2)
    b[-1] = 1.0
    with numpy.errstate(over="ignore", invalid="ignore"):  # The interpreter computes in NumPy.
        assert torch.equal(linear_scan(a, b, None, "triton"), b)


@pytest.mark.parametrize("cell", LINEAR_CELLS)
def test_triton_scan_layer_equals_reference(cell, interpreter):
    torch.manual_seed(0)
    parameters = make_layer(cell, 4, 6, torch.float32)
    inputs = torch.randn(5, 3, 4, requires_grad=True)
    state = (torch.randn(3, 6, requires_grad=True),)
    leaves = leaves_of(inputs, state, [parameters])
    options = {"recurrent_gradient_scale": 0.5}
    results = []
    for function, name, backend in (
        (time_batched.run_layer, find_cell(cell), "triton"),
        (layer.run, cell, "reference"),
    ):
        dtype = {"dtype": torch.float32} if function is time_batched.run_layer else {}
        outputs, (final,) = function(name, inputs, state, parameters, backend, **dtype, **options)
        total = outputs.square().sum() + final.sum()
        results.append([outputs, final, *torch.autograd.grad(total, leaves)])
    assert_same(*results, 1e-5)


def test_offsets_beyond_2_to_31_have_64_bits(interpreter):
    kernel = importlib.import_module("support.offsets_kernel").write_offsets
    found = torch.zeros(1, dtype=torch.int64)
    for columns in (2**30 + 1, 2**31 - 1, 2**31 + 1):
        kernel[(1,)](found, 3, columns, 5)
        assert found.item() == 3 * columns + 5


def test_kernels_check_finds_wrong_results_and_logs_once(interpreter, monkeypatch, caplog):
    cpu = torch.device("cpu")
    monkeypatch.setattr(triton_scan, "_reasons", {})
    assert triton_scan.unavailable(cpu) is None
    monkeypatch.setattr(triton_scan, "_reasons", {})
    right = triton_scan.forward
    monkeypatch.setattr(triton_scan, "forward", lambda *inputs: right(*inputs) + 1.0)
    with caplog.at_level(logging.INFO, logger="recurra"):
        for _ in range(2):
            assert "wrong" in triton_scan.unavailable(cpu)
    assert caplog.text.count("results of Triton's kernels are wrong") == 1
    a, b, initial = make((2, 3))
    with pytest.raises(ConfigError, match=r"wrong; use auto or bptt"):
        linear_scan(a, b, initial, "triton")


def test_kernels_check_does_not_depend_on_default_dtype(interpreter, monkeypatch):
    monkeypatch.setattr(triton_scan, "_reasons", {})
    torch.set_default_dtype(torch.float64)
    try:
        assert triton_scan.unavailable(torch.device("cpu")) is None
    finally:
        torch.set_default_dtype(torch.float32)


def test_unavailable_names_missing_triton_and_failed_compiler(monkeypatch, caplog):
    def fail(error):
        def kernels():
            raise error

        monkeypatch.setattr(triton_scan, "_reasons", {})
        monkeypatch.setattr(triton_scan, "_kernels", kernels)
        with caplog.at_level(logging.INFO, logger="recurra"):
            return triton_scan.unavailable(torch.device("cpu"))

    assert "No module named 'triton'" in fail(ImportError("No module named 'triton'"))
    assert "RuntimeError: no C compiler" in fail(RuntimeError("no C compiler\nin PATH"))
    assert "step by step on cpu: Triton cannot be used: RuntimeError" in caplog.text


def test_unavailable_while_graph_is_captured_does_not_compile(monkeypatch):
    monkeypatch.setattr(triton_scan, "_reasons", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(triton_scan, "_check", lambda device: pytest.fail("compiled"))
    assert "before a CUDA graph is captured" in triton_scan.unavailable(CUDA)
    # Kernels that were compiled before are used.
    monkeypatch.setattr(triton_scan, "_reasons", {CUDA: None})
    assert triton_scan.unavailable(CUDA) is None


def test_linear_scan_triton_on_cpu_without_interpreter_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    a, b, initial = make((2, 3))
    with pytest.raises(ConfigError, match="scan on a GPU, not on cpu; use auto or bptt"):
        linear_scan(a, b, initial, "triton")
    with pytest.raises(ConfigError, match="fp32"):
        linear_scan(a.double(), b.double(), initial.double(), "triton")


class OnGpu(torch.Tensor):
    """A tensor that states a CUDA device."""

    device = CUDA


@pytest.mark.parametrize(("reason", "chosen"), [(None, "triton"), ("no compiler", "bptt")])
def test_linear_scan_auto_on_gpu_selects_triton_where_available(reason, chosen, monkeypatch):
    monkeypatch.setattr(triton_scan, "_reasons", {CUDA: reason})
    monkeypatch.setattr(scan_module, "is_traced", lambda *tensors: False)
    tensors = [torch.zeros(2, 3).as_subclass(OnGpu) for _ in range(3)]
    assert scan_module.choose_backend(*tensors) == chosen
    assert scan_module.choose_backend(*(t.double() for t in tensors)) == "bptt"
    a, b, initial = tensors
    assert scan_module.choose_backend(a[:1], b[:1], initial) == "bptt"


@pytest.mark.parametrize(("device", "passed"), [("cpu", "bptt"), ("meta", "auto")])
def test_time_batched_bptt_beside_cpu_selects_scan_of_device(device, passed, monkeypatch):
    seen = []

    def scan(a, b, initial, backend, **options):
        seen.append(backend)
        return b

    monkeypatch.setattr(time_batched, "linear_scan", scan)
    parameters = make_layer("mingru", 4, 6, torch.float32, device)
    inputs, state = torch.zeros(2, 3, 4, device=device), (torch.zeros(3, 6, device=device),)
    options = {"dtype": torch.float32, "recurrent_gradient_scale": 1.0}
    time_batched.run_layer(find_cell("mingru"), inputs, state, parameters, "bptt", **options)
    assert seen == [passed]


@pytest.mark.parametrize(
    ("steps", "columns", "length"),
    [
        (35, 1, 35),  # The sequence is too short.
        (4096, 132 * 128, 4096),  # The columns saturate the memory bandwidth.
        (4096, 132 * 128 // 3, 4096),  # Three chunks are not worthwhile.
        (4096, 132 * 32, 1024),
        (4096, 512, 125),  # 33 chunks, the last of which is shorter.
        (4096, 1, 64),
        (1_000_000, 1, 1000),  # The square root limits the number of chunks.
        (1000, 1, 67),
        (1000, 0, 67),
    ],
)
def test_chunk_length_depends_on_columns_per_multiprocessor(steps, columns, length):
    assert triton_scan.chunk_length(steps, columns, 132) == length


def test_chunk_length_covers_all_steps_with_full_chunks():
    for steps in (255, 256, 257, 4097, 10_001):
        for columns in (1, 100, 1000, 5000):
            length = triton_scan.chunk_length(steps, columns, 132)
            chunks = -(-steps // length)
            assert (chunks - 1) * length < steps <= chunks * length
            assert chunks == 1 or (length >= 64 and chunks <= 65_535)
