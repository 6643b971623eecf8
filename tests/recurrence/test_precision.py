"""Precisions: rounding of operands, and changes of torch's settings for fp32 products."""

import logging
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from recurra import nn as recurra_nn
from recurra.config import ModelConfig
from recurra.errors import ConfigError
from recurra.model import RecurrentLM
from recurra.recurrence import layer, precision
from recurra.recurrence.cells import CELLS, LayerParameters
from recurra.recurrence.precision import (
    FP32,
    PRECISIONS,
    autocast_precision,
    find_precision,
    keep_products_in_backward,
    matrix_product,
    product,
)
from support.layers import assert_same, layer_outcome, make_layer, make_state

TF32, BF16, FP16 = (PRECISIONS[name] for name in ("tf32", "bf16", "fp16"))
CPU = torch.device("cpu")
SETTINGS = [("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "rnn")]


def legacy_cudnn(allowed):
    torch.backends.cudnn.allow_tf32 = allowed


def legacy_matmul(allowed):
    torch.backends.cuda.matmul.allow_tf32 = allowed


def set_everywhere(value):
    torch.backends.fp32_precision = value


def set_cuda(value):
    torch.backends.cudnn.fp32_precision = value


def set_rnn(value):
    torch.backends.cudnn.rnn.fp32_precision = value


def set_matmul(value):
    torch.backends.cuda.matmul.fp32_precision = value


CHANGES = {
    "cudnn.allow_tf32 off": (legacy_cudnn, False),
    "cudnn.allow_tf32 on": (legacy_cudnn, True),
    "matmul.allow_tf32 on": (legacy_matmul, True),
    "matmul.allow_tf32 off": (legacy_matmul, False),
    "high": (torch.set_float32_matmul_precision, "high"),
    "medium": (torch.set_float32_matmul_precision, "medium"),
    "generic tf32": (set_everywhere, "tf32"),
    "generic ieee": (set_everywhere, "ieee"),
    "cuda ieee": (set_cuda, "ieee"),
    "cuda tf32": (set_cuda, "tf32"),
    "rnn ieee": (set_rnn, "ieee"),
    "matmul tf32": (set_matmul, "tf32"),
}
PAIRS = [(a, b) for a in CHANGES for b in CHANGES if a != b]
OLD_API = pytest.mark.filterwarnings("ignore:Please use the new API:UserWarning")


@pytest.fixture(autouse=True)
def _restore_settings():
    yield
    legacy_cudnn(True)
    torch.set_float32_matmul_precision("highest")
    for setting in SETTINGS[:3]:
        torch._C._set_fp32_precision_setter(*setting, "none")
    assert not precision._changes


def readings():
    """Return the settings as read by all interfaces of torch; None if reading raises an error."""
    found = [torch._C._get_fp32_precision_getter(*s) for s in (*SETTINGS, ("cuda", "conv"))]
    for read in (
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


def in_force():
    return {torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision}


def test_precision_names_and_attributes():
    assert list(PRECISIONS) == ["fp32", "tf32", "bf16", "fp16"]
    assert [p.loss_scale for p in PRECISIONS.values()] == [None, None, None, 65536.0]
    assert [p.allows_tf32 for p in PRECISIONS.values()] == [False, True, False, False]
    assert find_precision(FP16) is FP16 is find_precision("fp16")
    with pytest.raises(ConfigError, match="fp32, tf32, bf16, fp16"):
        find_precision("fp8")


def test_product_dtype_follows_precision_and_operands():
    assert FP32.product_dtype(torch.float64) == torch.float64
    assert TF32.product_dtype(torch.float32) == torch.float32
    assert BF16.product_dtype(torch.float32) == torch.bfloat16
    assert FP16.product_dtype(torch.float32) == torch.float16


def test_autocast_precision_is_that_of_the_autocast_dtype_for_fp32_weights():
    weight = torch.zeros(2)
    assert autocast_precision(weight) is FP32
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_precision(weight) is BF16
        assert autocast_precision(weight.double()) is FP32
    with torch.autocast("cpu", torch.float16):
        assert autocast_precision(weight) is FP16


@OLD_API
def test_products_change_and_restore_settings_of_every_interface():
    for first, second in PAIRS:
        for change, value in (CHANGES[first], CHANGES[second]):
            change(value)
        before = readings()
        for wanted in (FP32, TF32, BF16):
            with wanted.products():
                assert in_force() == {"tf32" if wanted is TF32 else "ieee"}, (first, second)
            assert readings() == before, (first, second)


@OLD_API
@pytest.mark.parametrize("name", CHANGES)
def test_products_leave_the_interface_of_the_user_readable(name):
    change, value = CHANGES[name]
    change(value)
    readable = [reading is not None for reading in readings()]
    with FP32.products():
        pass
    assert [reading is not None for reading in readings()] == readable


def test_products_keep_settings_that_are_inherited():
    # This needs a new process, because torch cannot return to settings that were never set.
    code = """
import torch
from recurra.recurrence.precision import find_precision

def change(value):
    torch.backends.fp32_precision = value
    for name in ("fp32", "tf32"):
        with find_precision(name).products():
            pass
    print(torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision)

for value in ("none", "ieee", "tf32", "none"):
    change(value)
torch.backends.cudnn.fp32_precision = "ieee"
change("tf32")
torch.backends.cudnn.fp32_precision = "none"
change("tf32")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words = found.stdout.split()
    first = ["tf32", "none", "ieee", "ieee", "tf32", "tf32", "tf32", "none"]
    assert words == [*first, "ieee", "ieee", "tf32", "tf32"]


def test_products_restore_settings_after_error_and_inside_others():
    before = readings()
    with FP32.products():
        with pytest.raises(KeyError), TF32.products():
            raise KeyError(in_force() == {"tf32"})
        assert in_force() == {"ieee"}
        set_rnn("tf32")  # The user may change a setting in a callback.
        with FP32.products():
            assert in_force() == {"ieee"}
        assert in_force() == {"ieee", "tf32"}
    assert readings() == before


def test_products_of_two_threads_last_until_both_end():
    before, entered, leave = readings(), threading.Event(), threading.Event()

    def other():
        with FP32.products():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with FP32.products():
        thread.start()
        assert entered.wait(10)
    assert in_force() == {"ieee"}
    leave.set()
    thread.join()
    assert readings() == before


@pytest.mark.parametrize("first", [FP32, TF32], ids=["fp32", "tf32"])
def test_products_of_two_threads_in_two_precisions_are_restored_in_any_order(first):
    second = TF32 if first is FP32 else FP32
    before, entered, leave = readings(), threading.Event(), threading.Event()

    def other():
        with second.products():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with first.products():
        expected = in_force()
        thread.start()
        assert entered.wait(10)
    # The first context has ended, and the second has not.
    assert in_force().isdisjoint(expected)
    leave.set()
    thread.join()
    assert readings() == before


def test_products_on_a_cpu_change_nothing():
    before = readings()
    with FP32.products(CPU), TF32.products(CPU):
        assert readings() == before


@pytest.mark.parametrize("options", [{}, {"residual": True}], ids=["plain", "blocks"])
def test_products_of_a_model_are_all_inside_the_context(options, monkeypatch):
    active, seen = [], []

    @contextmanager
    def products(self, device):
        active.append(self)
        yield
        active.pop()

    monkeypatch.setattr(precision.Precision, "products", products)
    linear = precision.linear
    monkeypatch.setattr(precision, "linear", lambda *a: [seen.append(active[-1]), linear(*a)][1])
    config = ModelConfig(
        cell="gru", backend="reference", precision="tf32", vocab_size=7, hidden_size=6,
        embedding_size=6, num_layers=2, **options,
    )  # fmt: skip
    model = RecurrentLM(config)
    ids = torch.randint(7, (2, 5))
    model.loss(ids, ids)
    model(ids)
    assert len(seen) > 20
    assert set(seen) == {TF32}


class Reading(torch.autograd.Function):
    """Function that records the settings in its backward pass, or raises an error."""

    seen: list = []  # noqa: RUF012
    fails = False

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        if Reading.fails:
            raise MemoryError
        Reading.seen.append(in_force())
        return 2 * gradient


def test_keep_products_in_backward_applies_to_its_node_only():
    before = readings()
    Reading.seen.clear()
    x = torch.ones(3, requires_grad=True)
    with TF32.products():
        below = Reading.apply(x)
        keep_products_in_backward(below.grad_fn)
    middle = Reading.apply(below)
    with FP32.products():
        above = Reading.apply(middle)
        keep_products_in_backward(above.grad_fn)
    torch.autograd.backward(above.sum())
    assert Reading.seen == [{"ieee"}, {"tf32", "none"}, {"tf32"}]
    assert readings() == before


def test_keep_products_in_backward_of_failing_node_ends_with_the_graph(monkeypatch):
    before = readings()
    monkeypatch.setattr(Reading, "fails", True)
    with FP32.products():
        outputs = Reading.apply(torch.ones(3, requires_grad=True))
        keep_products_in_backward(outputs.grad_fn)
    with pytest.raises(MemoryError):
        torch.autograd.backward(outputs.sum())
    del outputs
    assert readings() == before


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_module_forward_in_fp32_sets_precision_of_both_passes(name, monkeypatch):
    module = getattr(recurra_nn, name)(3, 4)
    seen, kept = [], []
    theirs = getattr(nn, name).forward
    monkeypatch.setattr(
        getattr(nn, name), "forward", lambda *a: [seen.append(in_force()), theirs(*a)][1]
    )
    monkeypatch.setattr(recurra_nn, "keep_products_in_backward", kept.append)
    for inputs in (torch.randn(5, 2, 3), torch.randn(5, 3)):
        outputs, _ = module._forward_in_fp32(inputs, None)
        torch.testing.assert_close(outputs, module(inputs)[0])
    assert seen == [{"ieee"}] * 2
    assert all(len(node.next_functions) > 1 for node in kept)


def test_log_fallback_states_once_that_tf32_is_fp32(caplog):
    precision._logged.clear()
    with caplog.at_level(logging.INFO, precision.__name__):
        for found in (*PRECISIONS.values(), TF32):
            found.log_fallback(CPU)
    assert caplog.messages == ["cpu has no TF32: products are computed in fp32"]


@pytest.mark.parametrize("rounding", [BF16, FP16], ids=["bf16", "fp16"])
def test_product_on_cpu_rounds_operands_but_not_the_result(rounding):
    torch.manual_seed(0)
    dtype = rounding.operand_dtype
    # The sums exceed the largest number of fp16.
    left, right = torch.randn(3, 500) * 100, torch.randn(4, 500) * 100
    expected = left.to(dtype).float() @ right.to(dtype).float().t()
    assert expected.abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(product(left, right, dtype), expected)
    torch.testing.assert_close(matrix_product(left, right.t(), dtype), expected)
    assert (expected - left @ right.t()).abs().max() > 1


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", ["bptt", "library"])
@pytest.mark.parametrize("chosen", PRECISIONS.values(), ids=PRECISIONS)
def test_backend_in_every_precision_equals_reference(chosen, backend, name):
    torch.manual_seed(3)
    kernel, cell = CELLS[name].torch_kernel, CELLS[name]
    if cell.reads_state and (kernel if backend == "library" else cell.loop) is None:
        assert layer.choose_backend(_needs(name, chosen)) == "reference"
        return
    if backend == "library" and cell.num_states and kernel is None:
        return
    parameters = make_layer(name, 6, 16, torch.float32)
    state = make_state(name, 4, parameters)
    inputs = torch.randn(9, 4, 6, requires_grad=True)
    expected = layer_outcome(name, inputs, state, parameters, "reference", precision=chosen)
    actual = layer_outcome(name, inputs, state, parameters, backend, precision=chosen)
    exact = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
    assert_same(actual, expected, exact[chosen.product_dtype(torch.float32)])


def _needs(name, chosen):
    dtype = chosen.product_dtype(torch.float32)
    return layer.Requirements(CELLS[name], CPU, product_dtype=dtype)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_auto_in_fp16_is_not_a_backend_that_rounds_the_state(name):
    assert layer.choose_backend(_needs(name, FP16)) == "bptt"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_library_backend_on_cuda_matches_float64(name):
    torch.manual_seed(0)
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[name]
    module = kind(64, 256)
    x = torch.randn(35, 8, 64)
    before = readings()
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        weights = [p.detach().to(device, dtype).requires_grad_() for p in module.parameters()]
        backend = "library" if device == "cuda" else "reference"
        inputs, parameters = x.to(device, dtype), LayerParameters(*weights)
        outputs, _ = layer.run(name, inputs, None, parameters, backend)
        torch.autograd.backward(outputs.square().sum())
        results.append([outputs.detach(), *(w.grad for w in weights)])
    for expected, found in zip(*results, strict=True):
        error = (found.cpu().double() - expected).norm() / expected.norm()
        assert error < 2e-5  # 4.4e-6 was measured on an H100; TF32 gives about 5e-4
    assert readings() == before
