"""Cells beyond the basic ones: against their equations, and every backend against `reference`."""

import itertools
import math

import pytest
import torch

from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence import layer as recurrent_layer
from recurra.recurrence.backends import Requirements, supporting_backends
from recurra.recurrence.cells import CELLS, LayerParameters, LinearCell, find_cell
from support.layers import assert_same, layer_outcome, leaves_of, make_layer

LINEAR = [name for name, cell in CELLS.items() if isinstance(cell, LinearCell)]
BASIC_CELLS = ["rnn", "rnn-relu", "gru", "lstm", "none"]
VARIANTS = [name for name in CELLS if name not in (*LINEAR, *BASIC_CELLS)]
SHAPES = [(1, 1, 1, 1), (1, 3, 4, 5), (7, 1, 3, 8), (13, 5, 6, 17)]


def make_case(name, shape, dtype=torch.float64, bias=True):
    steps, batch, inputs, units = shape
    torch.manual_seed(0)
    layer = make_layer(name, inputs, units, dtype, bias=bias)
    state = tuple(
        torch.randn(batch, units, dtype=dtype).requires_grad_()
        for _ in range(find_cell(name).num_states)
    )
    return torch.randn(steps, batch, inputs, dtype=dtype).requires_grad_(), state, layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_cell_bptt_equals_reference(name, shape, bias):
    inputs, state, layer = make_case(name, shape, bias=bias)
    for options in ({}, {"recurrent_gradient_scale": 0.75}):
        expected = layer_outcome(name, inputs, state, layer, "reference", **options)
        assert_same(layer_outcome(name, inputs, state, layer, "bptt", **options), expected, 1e-10)


@pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_cell_native_equals_reference(name, shape):
    inputs, state, layer = make_case(name, shape, torch.float32)
    expected = layer_outcome(name, inputs, state, layer, "reference")
    assert_same(layer_outcome(name, inputs, state, layer, "native"), expected, 2e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_cell_token_ids_equal_one_hot_inputs(name):
    _, state, layer = make_case(name, (9, 3, 11, 6))
    ids = torch.randint(11, (9, 3))
    one_hot = torch.nn.functional.one_hot(ids, 11).double()
    expected = layer_outcome(name, one_hot, state, layer, "reference")
    for backend in ("reference", "bptt"):
        assert_same(layer_outcome(name, ids, state, layer, backend), expected, 1e-10)


@pytest.mark.parametrize("name", LINEAR + VARIANTS)
def test_cell_gradients_pass_gradcheck(name):
    inputs, state, layer = make_case(name, (4, 2, 3, 4))
    leaves = leaves_of(inputs, state, [layer])
    extra = len(layer.extra or ())

    def function(inputs, *rest):
        state, rest = rest[: len(given)], list(rest[len(given) :])
        own = tuple(rest[len(rest) - extra :]) or None
        present = iter(rest[: len(rest) - extra])
        parts = [None if p is None else next(present) for p in layer.of_torch]
        parameters = LayerParameters.from_torch(parts)._replace(extra=own)
        outputs, final = recurrent_layer.run(name, inputs, state, parameters, "reference")
        return outputs, *final

    given = state
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", LINEAR + VARIANTS)
def test_cell_two_halves_equal_whole_sequence(name):
    inputs, _, layer = make_case(name, (11, 3, 4, 6))
    needs = Requirements(find_cell(name), torch.device("cpu"))
    for backend in supporting_backends(needs):
        if backend == "native":
            continue
        whole, final = recurrent_layer.run(name, inputs, None, layer, backend)
        first, state = recurrent_layer.run(name, inputs[:4], None, layer, backend)
        second, end = recurrent_layer.run(name, inputs[4:], state, layer, backend)
        assert_same([torch.cat([first, second]), *end], [whole, *final], 1e-12)


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def scalar_case(name):
    """Return a layer of one unit and its weights, state, inputs and outputs as Python floats."""
    inputs, state, layer = make_case(name, (2, 1, 1, 1))
    x = inputs.flatten().tolist()
    w = layer.weight_ih.flatten().tolist()
    b = layer.bias_ih.flatten().tolist()
    outputs, _ = recurrent_layer.run(name, inputs, state, layer, "reference")
    return x, w, b, state[0].item(), layer, outputs.flatten().tolist()


def test_mingru_equals_scalar_equations():
    x, w, b, h, _, outputs = scalar_case("mingru")
    for x_t, y in zip(x, outputs, strict=True):
        z, n = sigmoid(w[0] * x_t + b[0]), w[1] * x_t + b[1]
        h = (1 - z) * h + z * n
        assert y == pytest.approx(h)


def test_minlstm_equals_scalar_equations():
    x, w, b, h, _, outputs = scalar_case("minlstm")
    for x_t, y in zip(x, outputs, strict=True):
        i, f, g = sigmoid(w[0] * x_t + b[0]), sigmoid(w[1] * x_t + b[1]), w[2] * x_t + b[2]
        h = f / (f + i) * h + i / (f + i) * g
        assert y == pytest.approx(h)


def test_sru_equals_scalar_equations():
    x, w, b, c, _, outputs = scalar_case("sru")
    for x_t, y in zip(x, outputs, strict=True):
        f, r = sigmoid(w[1] * x_t + b[1]), sigmoid(w[2] * x_t + b[2])
        c = f * c + (1 - f) * (w[0] * x_t + b[0])
        assert y == pytest.approx(r * math.tanh(c) + (1 - r) * (w[3] * x_t + b[3]))


def test_rglru_equals_scalar_equations():
    x, w, b, h, layer, outputs = scalar_case("rglru")
    decay = layer.extra[0].item()
    for x_t, y in zip(x, outputs, strict=True):
        r, i = sigmoid(w[0] * x_t + b[0]), sigmoid(w[1] * x_t + b[1])
        a = sigmoid(decay) ** (8 * r)
        h = a * h + math.sqrt(1 - a * a) * i * (w[2] * x_t + b[2])
        assert y == pytest.approx(h)


def test_rglru_initial_decay_is_between_0_9_and_0_999():
    decay = torch.empty(5000)
    find_cell("rglru").initialize_extra("decay", decay)
    decays = torch.sigmoid(decay) ** 8
    assert 0.9 <= float(decays.min()) < 0.901
    assert 0.998 < float(decays.max()) <= 0.9991


def test_rglru_gradients_are_finite_at_decay_one():
    inputs, state, layer = make_case("rglru", (5, 2, 3, 4), torch.float32)
    layer = layer._replace(extra=(torch.full((4,), 60.0, requires_grad=True),))
    for part in layer_outcome("rglru", inputs, state, layer, "reference"):
        assert torch.isfinite(part).all()


def test_lstm_ln_equals_equations():
    inputs, state, layer = make_case("lstm-ln", (1, 2, 3, 5))
    gain_ih, gain_hh, gain_cell, bias_cell = layer.extra

    def norm(x, gain):
        centred = x - x.mean(1, keepdim=True)
        return gain * centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()

    (x,), (h, c) = inputs, state
    gates = norm(x @ layer.weight_ih.t() + layer.bias_ih, gain_ih)
    gates = gates + norm(h @ layer.weight_hh.t(), gain_hh) + layer.bias_hh
    i, f, g, o = gates.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * (norm(c, gain_cell) + bias_cell).tanh()
    outputs, (_, last) = recurrent_layer.run("lstm-ln", inputs, state, layer, "reference")
    assert_same([outputs[0], last], [h, c], 1e-12)


def test_mogrifier_equals_lstm_of_gated_inputs():
    inputs, state, layer = make_case("mogrifier", (1, 2, 3, 5))
    (x,), (h, c) = inputs, state
    q1, r1, q2, r2, q3 = layer.extra
    x = 2 * (h @ q1.t()).sigmoid() * x
    h = 2 * (x @ r1.t()).sigmoid() * h
    x = 2 * (h @ q2.t()).sigmoid() * x
    h = 2 * (x @ r2.t()).sigmoid() * h
    x = 2 * (h @ q3.t()).sigmoid() * x
    expected, final = recurrent_layer.run(
        "lstm", x[None], (h, c), layer._replace(extra=None), "reference"
    )
    outputs, last = recurrent_layer.run("mogrifier", inputs, state, layer, "reference")
    assert_same([outputs, *last], [expected, *final], 1e-12)


@pytest.mark.parametrize(
    ("name", "backend"),
    [*itertools.product(VARIANTS, ["bptt", "library", "native"]), ("sru", "library")],
)
def test_run_backend_without_cell_error_lists_alternatives(name, backend):
    inputs, state, layer = make_case(name, (2, 1, 3, 4))
    with pytest.raises(ConfigError, match=f"no {name} cell; use auto, reference"):
        recurrent_layer.run(name, inputs, state, layer, backend)
    outputs, _ = recurrent_layer.run(name, inputs, state, layer, "auto")
    assert outputs.shape == (2, 1, 4)


def test_run_wrong_extra_parameters_raise():
    inputs, state, layer = make_case("rglru", (2, 1, 3, 4))
    with pytest.raises(ConfigError, match="decay of rglru is"):
        recurrent_layer.run("rglru", inputs, state, layer._replace(extra=(torch.zeros(3),)))
    with pytest.raises(ConfigError, match="extra parameters of rglru are decay"):
        recurrent_layer.run("rglru", inputs, state, layer._replace(extra=None))
    ids = torch.zeros(2, 1, dtype=torch.int64)
    inputs, state, layer = make_case("mogrifier", (2, 1, 3, 4))
    with pytest.raises(ConfigError, match="embedding"):
        recurrent_layer.run("mogrifier", ids, state, layer)
