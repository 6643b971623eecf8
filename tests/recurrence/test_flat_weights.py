"""Weights in one buffer and calls of several layers, as on a GPU, with a replaced cuDNN layout."""

import threading
from itertools import accumulate
from math import prod

import pytest
import torch

from recurra.config import ModelConfig
from recurra.model import RecurrentLM
from recurra.recurrence import layer as recurrent_layer
from recurra.recurrence.backends import flat_weights, torch_nn
from recurra.recurrence.backends.flat_weights import (
    Layout,
    flatten_weights,
    present_weights,
    weights_of_call,
)
from recurra.recurrence.cells import CELLS
from recurra.recurrence.dropout import Dropout
from support.layers import assert_same, layer_outcome, make_layer, make_state, outcome

KERNELS = ["rnn", "rnn-relu", "gru", "lstm"]
GAP = 3


def layout_with_gaps(mode, shapes, sizes, dtype, device):
    """Return a layout with the last weight first, and gaps between the weights."""
    ends = list(accumulate(prod(shape) + GAP for shape in reversed(shapes)))
    offsets = tuple([0, *ends[:-1]][::-1])
    return Layout(ends[-1], offsets)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(flat_weights, "DEVICES", {"cpu"})
    monkeypatch.setattr(flat_weights, "query_layout", layout_with_gaps)
    monkeypatch.setattr(torch_nn, "OVERLAPPING_DEVICES", {"cpu"})


def make_stack(cell, num_layers=3, dtype=torch.float32, **options):
    torch.manual_seed(0)
    layers = [make_layer(cell, 5 if i == 0 else 6, 6, dtype, **options) for i in range(num_layers)]
    states = [make_state(cell, 2, p) for p in layers]
    state = tuple(torch.stack(s).detach().requires_grad_() for s in zip(*states, strict=True))
    return layers, state, torch.randn(7, 2, 5, dtype=dtype, requires_grad=True)


def calls_of(monkeypatch):
    """Return a list that receives the number of layers of each call of torch's kernels."""
    counts, call = [], torch_nn._call

    def count(kernel, inputs, hx, weights, arguments):
        counts.append(arguments["num_layers"])
        return call(kernel, inputs, hx, weights, arguments)

    monkeypatch.setattr(torch_nn, "_call", count)
    return counts


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("cell", KERNELS)
def test_stack_in_one_call_equals_layers_one_by_one(cell, bias, precision, monkeypatch):
    layers, state, inputs = make_stack(cell, bias=bias)
    options = {"precision": precision}
    counts = calls_of(monkeypatch)
    actual = outcome(cell, inputs, state, layers, "library", **options)
    assert counts == [3]
    monkeypatch.setattr(torch_nn, "OVERLAPPING_DEVICES", ())
    monkeypatch.setattr(flat_weights, "DEVICES", ())
    expected = outcome(cell, inputs, state, layers, "library", **options)
    assert counts == [3, 1, 1, 1]
    # Between two layers, the results of one call are not converted to fp32 and back.
    assert_same(actual, expected, 1e-6 if "32" in precision else 2e-2)


def test_stack_of_ids_with_zero_state_equals_layers_one_by_one(monkeypatch):
    layers, _, _ = make_stack("lstm")
    ids = torch.randint(5, (7, 2))
    actual = outcome("lstm", ids, (), layers, "library")
    monkeypatch.setattr(torch_nn, "OVERLAPPING_DEVICES", ())
    assert_same(actual, outcome("lstm", ids, (), layers, "library"), 1e-6)
    with pytest.raises(RuntimeError, match="out of bounds"):
        outcome("lstm", ids + 1, (), layers, "library")


def test_stack_with_projection_is_one_call(monkeypatch):
    torch.manual_seed(1)
    layers = [make_layer("lstm", width, 6, torch.float64, proj_size=4) for width in (5, 4)]
    inputs, counts = torch.randn(7, 2, 5, dtype=torch.float64), calls_of(monkeypatch)
    actual = outcome("lstm", inputs, (), layers, "library")
    assert counts == [2]
    assert_same(actual, outcome("lstm", inputs, (), layers, "reference"), 1e-10)


@pytest.mark.parametrize("dropout", [Dropout(between=0.5), Dropout(weight=0.5, output=0.3)])
def test_stack_with_dropout_draws_the_same_masks(dropout, monkeypatch):
    layers, state, inputs = make_stack("gru")
    results, counts = [], calls_of(monkeypatch)
    for overlapping in ({"cpu"}, ()):
        monkeypatch.setattr(torch_nn, "OVERLAPPING_DEVICES", overlapping)
        torch.manual_seed(4)
        results.append(outcome("gru", inputs, state, layers, "library", dropout=dropout))
    assert counts == ([1] * 6 if dropout.between else [3, 1, 1, 1])
    assert_same(*results, 1e-6)


@pytest.mark.parametrize("change", ["bias", "zoneout", "scale", "reference", "one"])
def test_stack_that_one_call_cannot_compute_is_computed_one_by_one(change, monkeypatch):
    layers, state, inputs = make_stack("gru")
    counts, backend, options = calls_of(monkeypatch), "auto", {}
    monkeypatch.setattr(recurrent_layer, "choose_backend", lambda *_, **__: "library")
    if change == "bias":
        layers[1] = layers[1]._replace(bias_ih=None, bias_hh=None)
    elif change == "zoneout":
        options["zoneout"], backend = recurrent_layer.Zoneout(0.5, draws=False), "reference"
    elif change == "scale":
        options["recurrent_gradient_scale"], backend = 0.5, "bptt"
    elif change == "reference":
        backend = "reference"
    else:
        layers, state = layers[:1], None
    recurrent_layer.run_stack("gru", inputs, state, layers, backend, **options)
    assert 2 not in counts
    assert 3 not in counts


def test_overlaps_layers_of_other_sizes_is_false():
    first = make_layer("gru", 5, 6, torch.float32)
    assert torch_nn.overlaps_layers([first, make_layer("gru", 6, 6, torch.float32)])
    for inputs, units in ((6, 8), (5, 6)):
        other = make_layer("gru", inputs, units, torch.float32)
        assert not torch_nn.overlaps_layers([first, other])
    linear = [make_layer("mingru", 6, 6, torch.float32) for _ in range(2)]
    assert not torch_nn.overlaps_layers(linear)


@pytest.mark.parametrize("cell", KERNELS)
def test_flatten_weights_keeps_parameters_values_and_optimizer(cell):
    config = ModelConfig(cell=cell, vocab_size=9, hidden_size=6, embedding_size=5, num_layers=2)
    results = []
    for flat in (False, True):
        torch.manual_seed(2)
        model = RecurrentLM(ModelConfig(**{**vars(config), "backend": "library"}))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        parameters = list(model.parameters())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        ids = torch.randint(9, (2, 3, 8))
        for step in range(3):
            if flat and step:
                model.flatten_weights()
            optimizer.zero_grad()
            loss, _ = model.loss(*ids)
            loss.backward()
            optimizer.step()
            if step == 0 and flat:
                addresses = [p.data_ptr() for p in parameters]
        if flat:
            after = [p.data_ptr() for p in parameters]
            assert after != addresses
            model.flatten_weights()
            assert after == [p.data_ptr() for p in model.parameters()]
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert before.keys() == model.state_dict().keys()
        results.append([p.detach().clone() for p in parameters])
    for plain, flat in zip(*results, strict=True):
        assert torch.equal(plain, flat)


def test_flat_weights_in_their_dtype_are_passed_without_a_copy():
    layers, _, _ = make_stack("lstm")
    cell, weights = CELLS["lstm"], present_weights(layers)
    copied = weights_of_call(cell, layers, torch.float32)
    assert all(a is not b and torch.equal(a, b) for a, b in zip(copied, weights, strict=True))
    assert len({view.untyped_storage().data_ptr() for view in copied}) == 1
    assert flatten_weights(cell, layers)
    passed = weights_of_call(cell, layers, torch.float32)
    assert all(a is b for a, b in zip(passed, weights, strict=True))
    # The call of one layer cannot use the buffer, which has the layout of a call of all layers.
    assert weights_of_call(cell, layers[1:2], torch.float32)[0] is not layers[1].weight_ih


@pytest.mark.parametrize("fault", ["device", "shared", "dtypes", "layout"])
def test_flatten_weights_that_cannot_be_flat_are_unchanged(fault, monkeypatch):
    layers, state, inputs = make_stack("gru")
    if fault == "device":
        monkeypatch.setattr(flat_weights, "DEVICES", {"cuda"})
    elif fault == "shared":
        layers[2] = layers[2]._replace(weight_hh=layers[1].weight_hh)
    elif fault == "dtypes":
        layers[2] = layers[2]._replace(bias_hh=layers[2].bias_hh.detach().double())
    else:
        monkeypatch.setattr(flat_weights, "query_layout", lambda *_: None)
    addresses = [w.data_ptr() for w in present_weights(layers)]
    assert not flatten_weights(CELLS["gru"], layers)
    assert addresses == [w.data_ptr() for w in present_weights(layers)]
    if fault != "dtypes":
        expected = outcome("gru", inputs, state, layers, "reference")
        assert_same(outcome("gru", inputs, state, layers, "library"), expected, 1e-5)


def test_rounded_weights_of_several_forward_passes_are_independent():
    layers, _, inputs = make_stack("gru", 1)
    (layer,) = layers
    leaves = [w for w in layer.of_torch if w is not None]

    def loss():
        return recurrent_layer.run("gru", inputs, None, layer, "library", precision="bf16")[0].sum()

    first = loss()
    expected = torch.autograd.grad(first, leaves, retain_graph=True)
    with torch.no_grad():
        torch._foreach_mul_(leaves, 3.0)
    second = loss()
    for found in (torch.autograd.grad(first, leaves), expected):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert all(gradient.dtype == torch.float32 for gradient in found)
    assert not torch.equal(torch.autograd.grad(second, leaves)[0], expected[0])


def test_rounded_weights_in_two_threads_are_independent():
    stacks, results = [make_stack("lstm", 1) for _ in range(2)], {}
    with torch.no_grad():
        torch._foreach_mul_(present_weights(stacks[1][0]), 0.5)

    def compute(index):
        (layer,), _, inputs = stacks[index]
        for _ in range(20):
            results[index] = layer_outcome(
                "lstm", inputs, make_zero(layer), layer, "library", precision="bf16"
            )

    def make_zero(layer):
        return recurrent_layer.zero_state("lstm", 2, layer)

    threads = [threading.Thread(target=compute, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for index in range(2):
        compute(index)
        assert all(torch.equal(a, b) for a, b in zip(together[index], results[index], strict=True))


def test_flat_copy_has_second_derivatives():
    layer = make_layer("gru", 3, 4, torch.float32)
    weights = present_weights([layer])
    views = weights_of_call(CELLS["gru"], [layer], torch.float64)
    (slope,) = torch.autograd.grad(views[0].pow(3).sum(), weights[0], create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), weights[0])
    torch.testing.assert_close(curvature, 6 * weights[0].detach())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("cell", KERNELS)
def test_stack_on_cuda_equals_layers_one_by_one_without_a_warning(cell, precision, monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(5)
    layers = [make_layer(cell, w, 32, torch.float32, "cuda") for w in (16, 32, 32)]
    inputs = torch.randn(20, 8, 16).cuda().requires_grad_()
    results, counts = [], calls_of(monkeypatch)
    for flat, overlapping in ((False, ()), (False, {"cuda"}), (True, {"cuda"})):
        monkeypatch.setattr(torch_nn, "OVERLAPPING_DEVICES", overlapping)
        if flat:
            assert flatten_weights(CELLS[cell], layers)
        results.append(outcome(cell, inputs, (), layers, "library", precision=precision))
    assert counts == [1, 1, 1, 3, 3]
    for found in results[1:]:
        assert_same(found, results[0], {"fp32": 1e-5, "tf32": 5e-3}.get(precision, 3e-2))
