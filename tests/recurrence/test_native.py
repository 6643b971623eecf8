"""The compiled backend against `reference`: values and all gradients, in fp32 and bf16."""

import pytest
import torch

from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence import layer as recurrent_layer
from support.layers import assert_same, make_layer, make_state, outcome

RECURRENT = ["rnn", "rnn-relu", "gru", "lstm"]
needs_kernels = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")
# The shape with a single unit is left out: where its gate saturates, 1 - z is a rounding error, and
# no other unit has a gradient to which the error is relative.
SHAPES = [
    (1, 3, 4, 5), (7, 1, 3, 8), (13, 5, 6, 17), (8, 4, 40, 33), (5, 33, 7, 100),
    (6, 32, 10, 64), (4, 2, 3, 256), (3, 19, 8, 129),
]  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("input_kind", ["numbers", "ids"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", [*RECURRENT, "none"])
def test_native_equals_reference(cell, shape, threads, input_kind):
    torch.set_num_threads(threads)
    steps, batch, input_size, hidden_size = shape
    torch.manual_seed(0)
    widths = [input_size, hidden_size]
    layers = [make_layer(cell, w, hidden_size, torch.float32, bias=threads > 1) for w in widths]
    states = [make_state(cell, batch, p) for p in layers]
    state = tuple(torch.stack(s).detach().requires_grad_() for s in zip(*states, strict=True))
    inputs = torch.randn(steps, batch, input_size).requires_grad_()
    if input_kind == "ids":
        inputs = torch.randint(input_size, (batch, steps)).t()
    options = {} if cell == "none" else {"recurrent_gradient_scale": 0.75}
    expected = outcome(cell, inputs, state, layers, "reference", **options)
    assert_same(outcome(cell, inputs, state, layers, "native", **options), expected, 1e-5)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_native_bf16_gradients_are_close_to_fp32(cell, shape):
    steps, batch, input_size, hidden_size = shape
    torch.manual_seed(0)
    layers = [make_layer(cell, input_size, hidden_size, torch.float32)]
    state = tuple(s.detach()[None].requires_grad_() for s in make_state(cell, batch, layers[0]))
    inputs = torch.randn(steps, batch, input_size, requires_grad=True)
    expected = outcome(cell, inputs, state, layers, "reference")
    actual = outcome(cell, inputs, state, layers, "native", precision="bf16")
    assert_same(actual, expected, 0.1)


@needs_kernels
def test_native_rejects_other_dtypes_and_projection():
    inputs = torch.zeros(2, 1, 3)
    with pytest.raises(ConfigError, match="fp32"):
        recurrent_layer.run(
            "rnn", inputs.double(), None, make_layer("rnn", 3, 4, torch.float64), "native"
        )
    layer = make_layer("rnn", 3, 4, torch.float32)
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        mixed = layer._replace(**{part: getattr(layer, part).double()})
        with pytest.raises(ConfigError, match="fp32"):
            recurrent_layer.run("rnn", inputs, None, mixed, "native")
    for wrong, state in ((inputs.double(), None), (inputs, (torch.zeros(1, 4).double(),))):
        with pytest.raises(ConfigError, match="fp32"):
            recurrent_layer.run("rnn", wrong, state, layer, "native")
    layer = make_layer("lstm", 3, 4, torch.float32, proj_size=2)
    with pytest.raises(ConfigError, match="projected"):
        recurrent_layer.run("lstm", inputs, None, layer, "native")


@needs_kernels
@pytest.mark.parametrize("cell", RECURRENT)
def test_native_second_derivatives_equal_reference(cell):
    torch.manual_seed(9)
    layer = make_layer(cell, 3, 4, torch.float32)
    state = make_state(cell, 2, layer)
    inputs = torch.randn(5, 2, 3, requires_grad=True)
    leaves = [inputs, *(p for p in layer.of_torch if p is not None), *state]
    results = []
    for backend in ("native", "reference"):
        outputs, _ = recurrent_layer.run(cell, inputs, state, layer, backend)
        (slope,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        penalty = outputs.sum() + slope.square().sum()
        results.append(torch.autograd.grad(penalty, leaves))
    assert_same(list(results[0]), list(results[1]), 1e-5)


def test_native_rejects_a_precision_without_kernel():
    layer = make_layer("lstm", 4, 5, torch.float32)
    inputs = torch.randn(3, 2, 4)
    with pytest.raises(ConfigError, match=r"no products in torch\.float16"):
        recurrent_layer.run("lstm", inputs, None, layer, "native", precision="fp16")
    expected, _ = recurrent_layer.run("lstm", inputs, None, layer, "reference", precision="fp16")
    outputs, _ = recurrent_layer.run("lstm", inputs, None, layer, "auto", precision="fp16")
    # bf16 would round to 8 bits, an error of 4e-3.
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-4)
