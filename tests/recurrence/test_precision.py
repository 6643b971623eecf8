"""Precisions by name, and the precision setting of cuDNN that a pass changes and restores."""

import pytest
import torch
from torch import nn

from recurra.errors import ConfigError
from recurra.recurrence import layer
from recurra.recurrence.cells import LayerParameters
from recurra.recurrence.precision import (
    BF16,
    FP32,
    autocast_precision,
    find_precision,
    full_precision_backward,
    full_precision_rnn,
)


@pytest.fixture(autouse=True)
def _restore_setting():
    before = torch.backends.cudnn.rnn.fp32_precision
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def test_product_dtype_follows_precision_and_operands():
    assert find_precision("fp32").product_dtype(torch.float64) == torch.float64
    assert find_precision("bf16").product_dtype(torch.float32) == torch.bfloat16
    with pytest.raises(ConfigError, match="fp32, bf16"):
        find_precision("fp8")


def test_autocast_precision_is_bf16_for_fp32_weights_only():
    weight = torch.zeros(2)
    assert autocast_precision(weight) is FP32
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_precision(weight) is BF16
        assert autocast_precision(weight.double()) is FP32
    with torch.autocast("cpu", torch.float16):
        assert autocast_precision(weight) is FP32


@pytest.mark.parametrize("allowed", ["tf32", "ieee"])
def test_full_precision_rnn_restores_setting(allowed):
    settings = torch.backends.cudnn.rnn
    settings.fp32_precision = allowed
    with full_precision_rnn():
        assert settings.fp32_precision == "ieee"
    assert settings.fp32_precision == allowed


def test_full_precision_rnn_restores_setting_after_error():
    settings = torch.backends.cudnn.rnn
    settings.fp32_precision = "tf32"
    with pytest.raises(KeyError), full_precision_rnn():
        raise KeyError
    assert settings.fp32_precision == "tf32"


def test_full_precision_backward_applies_to_its_node_only():
    settings = torch.backends.cudnn.rnn
    settings.fp32_precision = "tf32"
    seen = []

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            seen.append(settings.fp32_precision)
            return 2 * gradient

    x = torch.ones(3, requires_grad=True)
    below = Node.apply(x)
    above = Node.apply(below)
    full_precision_backward(above)
    torch.autograd.backward(above.sum())
    assert seen == ["ieee", "tf32"]
    assert settings.fp32_precision == "tf32"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_library_backend_on_cuda_matches_float64(name):
    torch.manual_seed(0)
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[name]
    module = kind(64, 256)
    x = torch.randn(35, 8, 64)
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
    assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
