"""Every backend against `reference`, and `reference` against torch.nn: values and all gradients."""

import itertools
import re

import pytest
import torch

from recurra.config.backends import BACKEND_MODULES
from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence import layer as recurrent_layer
from recurra.recurrence.backends import Requirements, find_backend, require_supported
from recurra.recurrence.cells import CELLS, LayerParameters
from support.layers import assert_same, make_layer, make_state, outcome

RECURRENT = ["rnn", "rnn-relu", "gru", "lstm"]
BASIC_CELLS = [*RECURRENT, "none"]
SHAPES = [(1, 1, 1, 1), (1, 3, 4, 5), (7, 1, 3, 8), (13, 5, 6, 17), (8, 4, 40, 33)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
TORCH_MODULES = {
    "rnn": lambda *a, **k: torch.nn.RNN(*a, **k),
    "rnn-relu": lambda *a, **k: torch.nn.RNN(*a, nonlinearity="relu", **k),
    "gru": lambda *a, **k: torch.nn.GRU(*a, **k),
    "lstm": lambda *a, **k: torch.nn.LSTM(*a, **k),
}


def tolerance_of(backend: str, dtype: torch.dtype, device: str) -> float:
    """Return the permitted error relative to a tensor's largest entry."""
    # cuDNN approximates tanh and the sigmoid in fp32: errors of 6e-5 were measured on an H100.
    # TF32 products would give 1e-3.
    approximates = backend == "library" and device == "cuda" and dtype == torch.float32
    return 1e-4 if approximates else TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", BASIC_CELLS)
@pytest.mark.parametrize("backend", ["bptt", "library"])
def test_backend_equals_reference(backend, cell, shape, num_layers, dtype, device):
    steps, batch, input_size, hidden_size = shape
    torch.manual_seed(0)
    widths = [input_size] + [hidden_size] * (num_layers - 1)
    layers = [make_layer(cell, width, hidden_size, dtype, device) for width in widths]
    states = [make_state(cell, batch, p) for p in layers]
    state = tuple(torch.stack(s).detach().requires_grad_() for s in zip(*states, strict=True))
    inputs = torch.randn(steps, batch, input_size, dtype=dtype).to(device).requires_grad_()
    expected = outcome(cell, inputs, state, layers, "reference")
    tolerance = tolerance_of(backend, dtype, device)
    assert_same(outcome(cell, inputs, state, layers, backend), expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("cell", BASIC_CELLS)
@pytest.mark.parametrize("backend", ["bptt", "library"])
def test_backend_token_ids_equal_one_hot_inputs(backend, cell, bias, dtype, device):
    torch.manual_seed(1)
    layers = [make_layer(cell, 11, 6, dtype, device, bias=bias)]
    state = tuple(s.detach()[None].requires_grad_() for s in make_state(cell, 3, layers[0]))
    ids = torch.randint(11, (9, 3), device=device)
    one_hot = torch.nn.functional.one_hot(ids, 11).to(dtype)
    expected = outcome(cell, one_hot, state, layers, "reference")
    for name in ("reference", backend):
        tolerance = tolerance_of(name, dtype, device)
        assert_same(outcome(cell, ids, state, layers, name), expected, tolerance)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", RECURRENT)
def test_reference_equals_torch(cell, shape, num_layers, bias):
    steps, batch, input_size, hidden_size = shape
    torch.manual_seed(2)
    module = TORCH_MODULES[cell](input_size, hidden_size, num_layers, bias=bias).double()
    layers = []
    for index in range(num_layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layers.append(LayerParameters(*(getattr(module, f"{n}_l{index}", None) for n in names)))
    inputs = torch.randn(steps, batch, input_size, dtype=torch.float64, requires_grad=True)
    state = tuple(
        torch.randn(num_layers, batch, hidden_size, dtype=torch.float64, requires_grad=True)
        for _ in range(CELLS[cell].num_states)
    )
    actual = outcome(cell, inputs, state, layers, "reference")
    leaves = [
        t
        for t in (inputs, *state, *itertools.chain(*(layer.of_torch for layer in layers)))
        if t is not None
    ]
    for leaf in leaves:
        leaf.grad = None
    outputs, final = module(inputs, state if cell == "lstm" else state[0])
    final = final if cell == "lstm" else (final,)
    generator = torch.Generator().manual_seed(5)
    total = sum(
        (p * torch.randn(p.shape, generator=generator, dtype=torch.float64)).sum()
        for p in (outputs, *final)
    )
    total.backward()
    expected = [outputs.detach(), *(f.detach() for f in final), *(leaf.grad for leaf in leaves)]
    assert_same(actual, expected, 1e-10)


@pytest.mark.parametrize("proj_size", [1, 3])
@pytest.mark.parametrize("backend", ["bptt", "library"])
def test_backend_projected_lstm_equals_reference(backend, proj_size):
    torch.manual_seed(3)
    layers = [make_layer("lstm", 5, 7, torch.float64, proj_size=proj_size)]
    state = tuple(s.detach()[None].requires_grad_() for s in make_state("lstm", 2, layers[0]))
    inputs = torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=True)
    expected = outcome("lstm", inputs, state, layers, "reference")
    assert_same(outcome("lstm", inputs, state, layers, backend), expected, 1e-10)


@pytest.mark.parametrize("cell", RECURRENT)
def test_bptt_passes_gradcheck(cell):
    torch.manual_seed(4)
    layer = make_layer(cell, 3, 4, torch.float64)
    state = make_state(cell, 2, layer)
    inputs = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    present = [p for p in layer.of_torch if p is not None]

    def function(inputs, *rest):
        parameters = LayerParameters(*rest[: len(present)])
        outputs, final = recurrent_layer.run(cell, inputs, rest[len(present) :], parameters, "bptt")
        return outputs, *final

    assert torch.autograd.gradcheck(function, (inputs, *present, *state))


@pytest.mark.parametrize("backend", ["reference", "bptt", "library"])
@pytest.mark.parametrize("cell", BASIC_CELLS)
def test_backend_two_halves_equal_whole_sequence(cell, backend, device):
    torch.manual_seed(5)
    layers = [make_layer(cell, w, 6, torch.float64, device) for w in (4, 6)]
    inputs = torch.randn(11, 3, 4, dtype=torch.float64, device=device)
    whole, final = recurrent_layer.run_stack(cell, inputs, None, layers, backend)
    first, state = recurrent_layer.run_stack(cell, inputs[:4], None, layers, backend)
    second, end = recurrent_layer.run_stack(cell, inputs[4:], state or None, layers, backend)
    assert_same([torch.cat([first, second]), *end], [whole, *final], 1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.25])
@pytest.mark.parametrize("cell", RECURRENT)
def test_bptt_recurrent_gradient_scale_equals_reference(cell, scale):
    torch.manual_seed(6)
    layers = [make_layer(cell, 4, 5, torch.float64)]
    state = tuple(s.detach()[None].requires_grad_() for s in make_state(cell, 3, layers[0]))
    inputs = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    options = {"recurrent_gradient_scale": scale}
    expected = outcome(cell, inputs, state, layers, "reference", **options)
    assert_same(outcome(cell, inputs, state, layers, "bptt", **options), expected, 1e-10)


def test_bptt_recurrent_gradient_scale_zero_stops_gradients():
    torch.manual_seed(6)
    layer = make_layer("lstm", 4, 5, torch.float64)
    inputs = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    outputs, _ = recurrent_layer.run(
        "lstm", inputs, None, layer, "bptt", recurrent_gradient_scale=0.0
    )
    outputs[-1].sum().backward()
    assert inputs.grad[-1].abs().min() > 0
    assert inputs.grad[:-1].abs().max() == 0


def test_bptt_retained_graph_gives_equal_gradients_twice():
    torch.manual_seed(7)
    layer = make_layer("gru", 4, 5, torch.float64)
    inputs = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    outputs, _ = recurrent_layer.run("gru", inputs, None, layer, "bptt")
    first = torch.autograd.grad(outputs.sum(), [inputs, layer.weight_hh], retain_graph=True)
    second = torch.autograd.grad(outputs.sum(), [inputs, layer.weight_hh])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["reference", "bptt", "library"])
@pytest.mark.parametrize("cell", BASIC_CELLS)
def test_backend_bf16_is_close_to_fp32_and_returns_fp32(cell, backend):
    torch.manual_seed(8)
    layer = make_layer(cell, 6, 16, torch.float32)
    inputs = torch.randn(9, 4, 6)
    exact, _ = recurrent_layer.run(cell, inputs, None, layer, "reference")
    rounded, _ = recurrent_layer.run(cell, inputs, None, layer, backend, precision="bf16")
    assert rounded.dtype == torch.float32
    difference = (rounded - exact).abs().max()
    assert 0 < difference < 0.05


def test_run_unknown_cell_or_backend_error_lists_names():
    layer = make_layer("rnn", 3, 4, torch.float32)
    inputs = torch.zeros(2, 1, 3)
    with pytest.raises(ConfigError, match="lstm"):
        recurrent_layer.run("rnm", inputs, None, layer)
    with pytest.raises(ConfigError, match="bptt"):
        recurrent_layer.run("rnn", inputs, None, layer, "numpy")
    with pytest.raises(ConfigError, match="scale"):
        recurrent_layer.run("rnn", inputs, None, layer, "library", recurrent_gradient_scale=2.0)


@pytest.mark.parametrize("cell", RECURRENT)
def test_bptt_second_derivatives_equal_reference(cell):
    torch.manual_seed(9)
    layer = make_layer(cell, 3, 4, torch.float64)
    state = make_state(cell, 2, layer)
    inputs = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    leaves = [inputs, *(p for p in layer.of_torch if p is not None), *state]
    results = []
    for backend in ("bptt", "reference"):
        outputs, _ = recurrent_layer.run(cell, inputs, state, layer, backend)
        (slope,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        penalty = outputs.sum() + slope.square().sum()
        results.append(torch.autograd.grad(penalty, leaves))
    assert_same(list(results[0]), list(results[1]), 1e-10)


def choose(cell, device="cpu", *, steps=None, **needs):
    needed = Requirements(CELLS[cell], torch.device(device), **needs)
    return recurrent_layer.choose_backend(needed, steps)


def test_choose_backend_returns_fastest_supported_backend(monkeypatch):
    monkeypatch.setattr(library, "is_available", lambda: True)
    assert choose("gru") == "native"
    assert choose("lstm", recurrent_gradient_scale=1.5) == "native"
    assert choose("lstm", is_projected=True) == "library"
    assert choose("gru", dtype=torch.float64) == "bptt"
    assert choose("none") == "bptt"
    monkeypatch.setattr(library, "is_available", lambda: False)
    assert choose("gru") == "bptt"
    assert choose("lstm") == "library"
    assert choose("lstm", recurrent_gradient_scale=1.5) == "bptt"
    assert choose("lstm", steps=1) == "reference"
    assert choose("lstm", has_zoneout=True) == "reference"
    assert choose("gru", "cuda") == "library"
    assert choose("lstm-ln", "cuda") == "reference"
    assert choose("mingru", "cuda") == "bptt"


@pytest.mark.parametrize(
    ("backend", "cell", "device", "needs", "reason"),
    [
        ("library", "mogrifier", "cpu", {}, "the library backend has no mogrifier cell"),
        ("library", "mingru", "cpu", {}, "the library backend has no mingru cell"),
        ("bptt", "lstm-ln", "cpu", {}, "the bptt backend has no lstm-ln cell"),
        ("native", "mogrifier", "cpu", {}, "the compiled kernels have no mogrifier cell"),
        ("native", "gru", "cuda", {}, "the native backend computes on a CPU, not on cuda"),
        ("native", "gru", "cpu", {"dtype": torch.float64}, "in fp32, not in torch.float64"),
        ("native", "lstm", "cpu", {"is_projected": True}, "have no projected LSTM"),
        ("native", "rnn", "cpu", {"is_traced": True}, "needs plain tensors"),
        ("library", "gru", "cpu", {"recurrent_gradient_scale": 0.5}, "cannot scale recurrent"),
        ("bptt", "gru", "cpu", {"has_zoneout": True}, "zoneout needs the reference backend"),
        ("native", "gru", "cpu", {"has_zoneout": True}, "zoneout needs the reference backend"),
        ("library", "gru", "cpu", {"has_zoneout": True}, "zoneout needs the reference backend"),
        ("reference", "sru", "cpu", {"has_zoneout": True}, "those of sru do not"),
    ],
)
def test_backend_unsupported_returns_reason(backend, cell, device, needs, reason):
    needed = Requirements(CELLS[cell], torch.device(device), **needs)
    found = find_backend(backend).unsupported(needed)
    assert found is not None
    assert reason in found
    with pytest.raises(ConfigError, match=re.escape(found)):
        require_supported(backend, needed)


def test_run_wrong_state_shape_or_no_step_raises():
    layer = make_layer("gru", 3, 4, torch.float32)
    inputs = torch.zeros(2, 5, 3)
    for backend in BACKEND_MODULES:
        with pytest.raises(ConfigError, match=r"\(1, 4\).*should have.*\(5, 4\)"):
            recurrent_layer.run("gru", inputs, (torch.zeros(1, 4),), layer, backend)
        with pytest.raises(ConfigError, match="at least one step"):
            recurrent_layer.run("gru", inputs[:0], None, layer, backend)
    with pytest.raises(ConfigError, match="layers"):
        recurrent_layer.run_stack("gru", inputs, (torch.zeros(3, 5, 4),), [layer])


@pytest.mark.parametrize("backend", BACKEND_MODULES)
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_run_wrong_parameter_shape_error_names_cell(backend, name):
    layer = make_layer("gru", 3, 4, torch.float32)
    cut = layer._replace(**{name: getattr(layer, name)[:-1]})
    with pytest.raises(ConfigError, match="of gru is"):
        recurrent_layer.run("gru", torch.zeros(2, 5, 3), None, cut, backend)
    with pytest.raises(ConfigError, match="weight_ih of gru"):
        recurrent_layer.run("gru", torch.zeros(2, 5, 2), None, layer, backend)
    with pytest.raises(ConfigError, match="reads numbers"):
        recurrent_layer.run("gru", torch.zeros(2, 5, 3, dtype=torch.int64), None, layer, backend)
