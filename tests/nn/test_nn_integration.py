"""recurra.nn with other parts of torch: copies, parametrizations, autocast, func, compile."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

import recurra.nn
from nn.pairs import (
    BATCH,
    CELL_IDS,
    CELLS,
    HIDDEN,
    INPUT,
    NAMES,
    OWN_BACKENDS,
    STEPS,
    assert_same,
    leaf,
    make_inputs,
    make_pair,
    make_state,
    outcome,
    tensors,
)


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_module_copy_keeps_backend_and_values(duplicate, name):
    module = getattr(recurra.nn, name)(INPUT, HIDDEN, 2, bidirectional=True, backend="reference")
    other = duplicate(module)
    inputs, _ = make_inputs("padded", False, torch.float32)
    before = outcome(module, inputs, None)
    assert type(other) is type(module)
    assert other.backend == "reference"
    assert_same(outcome(other, inputs, None), before, 0.0)
    with torch.no_grad():
        module.weight_hh_l0.add_(1.0)
    assert_same(outcome(other, inputs, None), before, 0.0)


@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_module_with_weight_norm_equals_torch(name, backend):
    ours, theirs = make_pair(name, INPUT, HIDDEN, 2, backend=backend)
    inputs, _ = make_inputs("padded", False, torch.float64)
    for module in (ours, theirs):
        for weight in ("weight_hh_l0", "weight_ih_l1"):
            weight_norm(module, weight)
    for scale in (1.0, 1.7):
        for module in (ours, theirs):
            with torch.no_grad():
                module.parametrizations.weight_hh_l0.original0.mul_(scale)
        actual = outcome(ours, inputs, None)
        assert "parametrizations.weight_hh_l0.original1" in actual
        assert_same(actual, outcome(theirs, inputs, None), 1e-10)


@pytest.mark.parametrize("backend", OWN_BACKENDS)
def test_module_functional_call_uses_given_weights(backend):
    ours, theirs = make_pair("LSTM", INPUT, HIDDEN, backend=backend)
    inputs, _ = make_inputs("padded", False, torch.float64)
    expected = theirs(inputs)[0]
    single = {name: p.detach().float() for name, p in theirs.named_parameters()}
    actual = torch.func.functional_call(ours, single, (inputs.float(),))[0]
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.double(), expected, atol=1e-6)
    assert torch.allclose(ours(inputs)[0], expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_module_after_update_uses_new_weights(name):
    ours, theirs = make_pair(name, INPUT, HIDDEN)
    inputs, _ = make_inputs("padded", False, torch.float64)
    for module in (ours, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            module(inputs)[0].square().sum().backward()
            optimizer.step()
    assert_same(outcome(ours, inputs, None), outcome(theirs, inputs, None), 1e-10)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
def test_module_empty_batch_equals_torch(name, options, backend, bidirectional):
    ours, theirs = make_pair(
        name, INPUT, HIDDEN, 2, backend=backend, bidirectional=bidirectional, **options
    )
    inputs = torch.zeros(STEPS, 0, INPUT, dtype=torch.float64)
    assert_same(outcome(ours, inputs, None), outcome(theirs, inputs, None), 0.0)


@pytest.mark.parametrize("form", ["padded", "equal", "sorted"])
@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_module_results_can_be_modified_in_place(name, backend, form):
    ours, theirs = make_pair(name, INPUT, HIDDEN, backend=backend)
    inputs, _ = make_inputs(form, False, torch.float64)
    for module in (ours, theirs):
        for part in tensors(module(inputs)):
            part.mul_(3.0).square().sum().backward(retain_graph=True)
    for (key, our_parameter), their_parameter in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        assert torch.allclose(our_parameter.grad, their_parameter.grad, rtol=1e-10, atol=1e-10), key


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_module_without_grad_gives_equal_values(name, guard):
    ours = getattr(recurra.nn, name)(INPUT, HIDDEN, 2)
    inputs, _ = make_inputs("unsorted", False, torch.float32)
    expected = tensors(ours(inputs))
    with guard():
        actual = tensors(ours(inputs))
    for a, e in zip(actual, expected, strict=True):
        assert not a.requires_grad
        assert torch.equal(a, e.detach())
    # Buffers that inference mode returned to the pool must be usable in training.
    ours(inputs)[0].data.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
def test_module_half_precision_error_is_bounded(name, options, backend, dtype):
    torch.manual_seed(0)
    ours, theirs = make_pair(name, INPUT, HIDDEN, 2, backend=backend, dtype=dtype, **options)
    inputs, _ = make_inputs("unsorted", False, dtype)
    actual = outcome(ours, inputs, None)
    exact = outcome(theirs.double(), inputs._replace(data=inputs.data.double()), None)
    for key, value in exact.items():
        assert actual[key].dtype == dtype
        scale = max(float(value.abs().max()), 1.0)
        difference = float((actual[key].double() - value).abs().max())
        assert difference < 8 * torch.finfo(dtype).eps * scale, key


@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
def test_module_autocast_rounds_products(name, options, backend):
    torch.manual_seed(0)
    ours, _ = make_pair(name, INPUT, HIDDEN, 2, backend=backend, dtype=torch.float32, **options)
    inputs, batch = make_inputs("unsorted", False, torch.float32)
    hx = make_state(ours, batch)
    exact = outcome(ours, inputs, hx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = outcome(ours, inputs, hx)
    for key, value in exact.items():
        scale = max(float(value.abs().max()), 1.0)
        # Rounding can change the sign of an input near zero, and with it the gradient of rnn-relu.
        tolerance = 0.2 if "nonlinearity" in options and not key.startswith("result") else 0.05
        assert float((rounded[key] - value).abs().max()) < tolerance * scale, key
    assert not torch.equal(rounded["result 0"], exact["result 0"])


def test_module_moved_to_float64_equals_torch():
    ours, theirs = make_pair("GRU", INPUT, HIDDEN, dtype=torch.float32)
    inputs, _ = make_inputs("padded", False, torch.float64)
    actual = outcome(ours.to(torch.float64), inputs, None)
    assert_same(actual, outcome(theirs.double(), inputs, None), 1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_module_torch_compile_gives_equal_values(name):
    ours, theirs = make_pair(name, INPUT, HIDDEN, 2)
    compiled = torch.compile(ours, backend="eager")
    for _ in range(3):
        inputs, _ = make_inputs("padded", False, torch.float64)
        actual = outcome(compiled, inputs, None)
        expected = outcome(theirs, inputs, None)
        actual = {key.removeprefix("_orig_mod."): value for key, value in actual.items()}
        assert_same(actual, expected, 1e-10)


def test_reference_supports_second_derivatives():
    ours, theirs = make_pair("LSTM", INPUT, HIDDEN, backend="reference")
    inputs, _ = make_inputs("padded", False, torch.float64)
    penalties = []
    for module in (ours, theirs):
        x = leaf(inputs)
        (slope,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), module.weight_hh_l0)[0])
    assert penalties[1].abs().max() > 0
    assert torch.allclose(*penalties, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
def test_reference_supports_torch_func(name, options):
    ours, theirs = make_pair(name, INPUT, HIDDEN, backend="reference", **options)
    inputs, _ = make_inputs("padded", False, torch.float64)

    def loss(module, weights, x):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    weights = {key: p.detach() for key, p in theirs.named_parameters()}
    per_sample = torch.func.vmap(torch.func.grad(partial(loss, ours)), in_dims=(None, 1))
    gradients = per_sample(weights, inputs)
    for index in range(BATCH):
        theirs.zero_grad()
        theirs(inputs[:, index])[0].square().sum().backward()
        for key, p in theirs.named_parameters():
            assert torch.allclose(gradients[key][index], p.grad, rtol=1e-10, atol=1e-10)
