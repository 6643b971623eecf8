"""recurra.nn against torch.nn: values, states, all gradients, errors, dropout, packing, copies."""

import copy
import io
import itertools
import pickle
import re
import warnings
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import recurra.nn
from recurra.errors import ConfigError
from recurra.kernels import library

RNN_RELU = {"nonlinearity": "relu"}
CELLS = [("RNN", {}), ("RNN", RNN_RELU), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 3})]
CELL_IDS = ["rnn", "rnn-relu", "gru", "lstm", "lstm-projected"]
NAMES = ["RNN", "GRU", "LSTM"]
OWN_BACKENDS = ["bptt", "reference"]
KERNELS = ["native"] if library.is_available() else []
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LENGTHS = {
    "sorted": ([6, 6, 4, 3, 1], True),
    "unsorted": ([3, 1, 6, 4, 6], False),
    "equal": ([5, 5, 5], True),
    "single": ([1, 1], True),
}
FORMS = [
    *((form, torch.float64) for form in ("padded", "unbatched", *LENGTHS)),
    *((form, torch.float32) for form in ("padded", "unsorted")),
]
INPUT, HIDDEN, BATCH, STEPS = 4, 5, 3, 6
# batch_first, bias, initial state given
CASES = [(False, True, True), (True, False, True), (True, True, False)]


# torch says so of its own float32 module; the sums are the same.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def make_pair(name, *args, backend="bptt", dtype=torch.float64, **kwargs):
    """A module of ours and torch's, with torch's weights."""
    ours = getattr(recurra.nn, name)(*args, backend=backend, dtype=dtype, **kwargs)
    theirs = getattr(torch.nn, name)(*args, dtype=dtype, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def make_state(module, batch):
    """A random initial state that fits the module; `batch` None is no batch dimension."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    middle = () if batch is None else (batch,)
    dtype = module.weight_ih_l0.dtype
    h = torch.randn(rows, *middle, module.proj_size or module.hidden_size, dtype=dtype)
    if not isinstance(module, torch.nn.LSTM):
        return h
    return h, torch.randn(rows, *middle, module.hidden_size, dtype=dtype)


def tensors(value):
    """All tensors of an input, state or result, in order."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return list(itertools.chain.from_iterable(tensors(v) for v in value))


def leaf(value):
    """The same value with tensors that collect their own gradients."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return value._replace(data=leaf(value.data))
    if isinstance(value, tuple):
        return tuple(leaf(v) for v in value)
    return value.detach().clone().requires_grad_()


def outcome(module, inputs, hx):
    """Outputs and final state, and the gradients of a random-weighted sum of both."""
    inputs, hx = leaf(inputs), leaf(hx)
    module.zero_grad()
    result = module(inputs, hx)
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=torch.float64)
    for part in tensors(result):
        weights = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        total = total + (part.double() * weights).sum()
    total.backward()
    named = [(n, p.grad) for n, p in module.named_parameters()]
    values = [(f"result {i}", t.detach()) for i, t in enumerate(tensors(result))]
    leaves = [(f"input {i}", t.grad) for i, t in enumerate((*tensors(inputs), *tensors(hx)))]
    return dict(values + leaves + named)


def assert_same(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        value = actual[name]
        assert value is not None, f"{name} has no gradient"
        assert value.shape == wanted.shape, name
        assert value.dtype == wanted.dtype, name
        scale = max(float(wanted.abs().max()), 1.0) if wanted.numel() else 1.0
        difference = float((value - wanted).abs().max()) if wanted.numel() else 0.0
        assert difference <= tolerance * scale, f"{name} differs by {difference}"


def make_inputs(form, batch_first, dtype):
    """An input of this form and its batch size."""
    if form == "unbatched":
        return torch.randn(STEPS, INPUT, dtype=dtype), None
    if form == "padded":
        shape = (BATCH, STEPS, INPUT) if batch_first else (STEPS, BATCH, INPUT)
        return torch.randn(shape, dtype=dtype), BATCH
    lengths, is_sorted = LENGTHS[form]
    shape = (len(lengths), max(lengths)) if batch_first else (max(lengths), len(lengths))
    padded = torch.randn(*shape, INPUT, dtype=dtype)
    packed = pack_padded_sequence(
        padded, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=is_sorted
    )
    return packed, len(lengths)


def assert_refused(name, dtype, options):
    module, _ = make_pair(name, INPUT, HIDDEN, backend="native", dtype=dtype, **options)
    with pytest.raises(ConfigError, match=r"native backend .*; take another"):
        module(torch.randn(STEPS, BATCH, INPUT, dtype=dtype))


@pytest.mark.parametrize(("form", "dtype"), FORMS, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
@pytest.mark.parametrize("backend", OWN_BACKENDS + KERNELS)
def test_equals_torch(backend, name, options, num_layers, bidirectional, form, dtype):
    if backend == "native" and (dtype == torch.float64 or "proj_size" in options):
        assert_refused(name, dtype, options)
        return
    torch.manual_seed(0)
    for batch_first, bias, with_state in CASES:
        ours, theirs = make_pair(
            name, INPUT, HIDDEN, num_layers, bias=bias, batch_first=batch_first,
            bidirectional=bidirectional, backend=backend, dtype=dtype, **options,
        )  # fmt: skip
        inputs, batch = make_inputs(form, batch_first, dtype)
        hx = make_state(theirs, batch) if with_state else None
        assert_same(outcome(ours, inputs, hx), outcome(theirs, inputs, hx), TOLERANCE[dtype])


@pytest.mark.parametrize("form", ["padded", "unbatched", "unsorted"])
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
def test_library_backend_equals_torch(name, options, form):
    torch.manual_seed(0)
    ours, theirs = make_pair(
        name, INPUT, HIDDEN, 2, bidirectional=True, backend="library", **options
    )
    inputs, batch = make_inputs(form, False, torch.float64)
    hx = make_state(theirs, batch)
    assert_same(outcome(ours, inputs, hx), outcome(theirs, inputs, hx), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_packed_result_has_the_order_and_type_of_its_input(name):
    ours, theirs = make_pair(name, INPUT, HIDDEN)
    packed, _ = make_inputs("unsorted", False, torch.float64)
    output, expected = ours(packed)[0], theirs(packed)[0]
    assert isinstance(output, PackedSequence)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(output, field), getattr(expected, field))


@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize("form", ["padded", "unsorted"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_a_seed_drops_what_torch_drops(dtype, name, bidirectional, form, backend):
    torch.manual_seed(0)
    ours, theirs = make_pair(
        name, INPUT, 37, 3, dropout=0.4, bidirectional=bidirectional, backend=backend, dtype=dtype
    )
    inputs, _ = make_inputs(form, False, dtype)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(7)
        results.append(outcome(module, inputs, None))
    assert_same(*results, TOLERANCE[dtype])
    kept = outcome(ours.eval(), inputs, None)
    assert_same(kept, outcome(theirs.eval(), inputs, None), TOLERANCE[dtype])
    assert not torch.allclose(kept["result 0"], results[0]["result 0"])


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropout_extremes(dropout):
    ours, theirs = make_pair("GRU", INPUT, HIDDEN, 2, dropout=dropout)
    inputs, _ = make_inputs("padded", False, torch.float64)
    assert_same(outcome(ours, inputs, None), outcome(theirs, inputs, None), 1e-10)


def test_dropout_of_one_layer_warns_as_torch_does():
    with pytest.warns(UserWarning, match="adds dropout after all but last"):
        recurra.nn.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_and_state_dict(name, options):
    torch.manual_seed(11)
    ours = getattr(recurra.nn, name)(3, 4, **options)
    torch.manual_seed(11)
    theirs = getattr(torch.nn, name)(3, 4, **options)
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    theirs.load_state_dict(ours.state_dict())


class Arguments(NamedTuple):
    args: tuple
    kwargs: dict


def call(module_class, constructor, forward):
    """The exception that a construction and a call raise together."""
    options = {"backend": "bptt"} if module_class.__module__ == "recurra.nn" else {}
    try:
        module = module_class(*constructor.args, **constructor.kwargs, **options)
        module(*forward.args, **forward.kwargs)
    except Exception as error:
        return error
    return None


def wrong_calls(name):
    """(constructor, inputs, hx) that torch refuses: one thing wrong in each."""

    def state(*shape, dtype=torch.float32):
        h = torch.zeros(shape, dtype=dtype)
        return (h, h) if name == "LSTM" else h

    ok, x = ((3, 4), {}), torch.zeros(5, 2, 3)
    packed = pack_padded_sequence(x, torch.tensor([5, 2]))
    yield "hidden size", ((3, 0), {}), x, None
    yield "layers", ((3, 4, 0), {}), x, None
    yield "input size", ((3.0, 4), {}), x, None
    yield "dropout", ((3, 4), {"dropout": 1.5}), x, None
    yield "bias", ((3, 4), {"bias": 1}), x, None
    yield "batch_first", ((3, 4), {"batch_first": 1}), x, None
    yield "missing argument", ((3,), {}), x, None
    yield "unknown argument", ((3, 4), {"direction": 2}), x, None
    yield "projection as wide", ((3, 4), {"proj_size": 4}), x, None
    yield "1-D input", ok, torch.zeros(3), None
    yield "4-D input", ok, torch.zeros(5, 2, 1, 3), None
    yield "input width", ok, torch.zeros(5, 2, 4), None
    yield "input width, unbatched", ok, torch.zeros(5, 4), None
    yield "input dtype", ok, x.double(), None
    yield "token ids", ok, x.long(), None
    yield "no steps", ok, torch.zeros(0, 2, 3), None
    yield "no steps, unbatched", ok, torch.zeros(0, 3), None
    yield "no steps, batch first", ((3, 4), {"batch_first": True}), torch.zeros(2, 0, 3), None
    yield "state batch", ok, x, state(1, 3, 4)
    yield "state layers", ok, x, state(2, 2, 4)
    yield "state width", ok, x, state(1, 2, 5)
    yield "state 2-D", ok, x, state(1, 4)
    yield "state dtype", ok, x, state(1, 2, 4, dtype=torch.float64)
    yield "state 3-D, unbatched", ok, torch.zeros(5, 3), state(1, 1, 4)
    yield "state width, unbatched", ok, torch.zeros(5, 3), state(1, 5)
    yield "packed width", ok, pack_padded_sequence(x[:, :, :2], torch.tensor([5, 2])), None
    yield "packed state batch", ok, packed, state(1, 3, 4)
    yield "packed state layers", ok, packed, state(2, 2, 4)
    if name == "LSTM":
        h = torch.zeros(1, 2, 4)
        yield "one tensor for two", ((3, 4, 2), {}), x, torch.zeros(2, 2, 4)
        yield "three tensors", ok, x, (h, h, h)
        yield "cell width", ok, x, (h, torch.zeros(1, 2, 5))
        projected = ((3, 4), {"proj_size": 2})
        yield "state as wide as the cell", projected, x, (h, h)
    else:
        yield "packed state 2-D", ok, packed, state(1, 4)
        yield "a pair", ok, x, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    if name == "RNN":
        yield "nonlinearity", ((3, 4), {"nonlinearity": "gelu"}), x, None


@pytest.mark.parametrize(
    ("name", "what", "arguments", "inputs", "hx"),
    [
        pytest.param(name, *case, id=f"{name}-{case[0]}")
        for name in NAMES
        for case in wrong_calls(name)
    ],
)
def test_wrong_calls_raise_what_torch_raises(name, what, arguments, inputs, hx):
    constructor, forward = Arguments(*arguments), Arguments((inputs, hx), {})
    expected = call(getattr(torch.nn, name), constructor, forward)
    actual = call(getattr(recurra.nn, name), constructor, forward)
    assert expected is not None, f"torch accepts {what}"
    assert type(actual) is type(expected), (actual, expected)
    assert str(actual)


def test_unknown_backend_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="bptt"):
        recurra.nn.LSTM(3, 4, backend="cudnn")


def test_repr_shows_the_backend_only_when_chosen():
    assert repr(recurra.nn.GRU(3, 4, batch_first=True)) == "GRU(3, 4, batch_first=True)"
    shown = repr(recurra.nn.LSTM(3, 4, num_layers=2, backend="reference"))
    assert shown == "LSTM(3, 4, num_layers=2, backend=reference)"


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
def test_copies_keep_backend_and_values(duplicate, name):
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
def test_weight_norm_reaches_its_own_parameters(name, backend):
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
def test_functional_call_takes_the_weights_it_is_given(backend):
    ours, theirs = make_pair("LSTM", INPUT, HIDDEN, backend=backend)
    inputs, _ = make_inputs("padded", False, torch.float64)
    expected = theirs(inputs)[0]
    single = {name: p.detach().float() for name, p in theirs.named_parameters()}
    actual = torch.func.functional_call(ours, single, (inputs.float(),))[0]
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.double(), expected, atol=1e-6)
    assert torch.allclose(ours(inputs)[0], expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_step_is_seen_by_the_next_call(name):
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
def test_no_sequences_give_what_torch_gives(name, options, backend, bidirectional):
    ours, theirs = make_pair(
        name, INPUT, HIDDEN, 2, backend=backend, bidirectional=bidirectional, **options
    )
    inputs = torch.zeros(STEPS, 0, INPUT, dtype=torch.float64)
    assert_same(outcome(ours, inputs, None), outcome(theirs, inputs, None), 0.0)


@pytest.mark.parametrize("form", ["padded", "equal", "sorted"])
@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_results_may_be_written_into(name, backend, form):
    ours, theirs = make_pair(name, INPUT, HIDDEN, backend=backend)
    inputs, _ = make_inputs(form, False, torch.float64)
    for module in (ours, theirs):
        for part in tensors(module(inputs)):
            part.mul_(3.0).square().sum().backward(retain_graph=True)
    for (key, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, their.grad, rtol=1e-10, atol=1e-10), key


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_the_values_are_the_same(name, guard):
    ours = getattr(recurra.nn, name)(INPUT, HIDDEN, 2)
    inputs, _ = make_inputs("unsorted", False, torch.float32)
    expected = tensors(ours(inputs))
    with guard():
        actual = tensors(ours(inputs))
    for a, e in zip(actual, expected, strict=True):
        assert not a.requires_grad
        assert torch.equal(a, e.detach())
    # Buffers used again after inference mode must still be good for training.
    ours(inputs)[0].data.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
def test_half_precision_modules_are_as_near_as_torchs(name, options, backend, dtype):
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
def test_autocast_rounds_products_and_keeps_the_weights_dtype(name, options, backend):
    torch.manual_seed(0)
    ours, _ = make_pair(name, INPUT, HIDDEN, 2, backend=backend, dtype=torch.float32, **options)
    inputs, batch = make_inputs("unsorted", False, torch.float32)
    hx = make_state(ours, batch)
    exact = outcome(ours, inputs, hx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = outcome(ours, inputs, hx)
        from_bf16 = ours(inputs._replace(data=inputs.data.bfloat16()), hx)[0]
    assert from_bf16.data.dtype == torch.float32
    for key, value in exact.items():
        assert rounded[key].dtype == torch.float32
        scale = max(float(value.abs().max()), 1.0)
        # Where a unit's input is near zero, rounding may turn rnn-relu's gradient on or off.
        tolerance = 0.2 if "nonlinearity" in options and not key.startswith("result") else 0.05
        assert float((rounded[key] - value).abs().max()) < tolerance * scale, key
    assert not torch.equal(rounded["result 0"], exact["result 0"])


def test_moving_the_module_moves_the_computation():
    ours, theirs = make_pair("GRU", INPUT, HIDDEN, dtype=torch.float32)
    inputs, _ = make_inputs("padded", False, torch.float64)
    actual = outcome(ours.to(torch.float64), inputs, None)
    assert_same(actual, outcome(theirs.double(), inputs, None), 1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_torch_compile_changes_nothing(name):
    ours, theirs = make_pair(name, INPUT, HIDDEN, 2)
    compiled = torch.compile(ours, backend="eager")
    for _ in range(3):
        inputs, _ = make_inputs("padded", False, torch.float64)
        actual = outcome(compiled, inputs, None)
        expected = outcome(theirs, inputs, None)
        actual = {key.removeprefix("_orig_mod."): value for key, value in actual.items()}
        assert_same(actual, expected, 1e-10)


def test_reference_gives_the_gradient_of_a_gradient():
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
def test_reference_passes_through_torch_func(name, options):
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


def torch_module_inputs():
    """torch's own list of RNN module tests, as far as its wheel carries them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("expecttest", reason="torch's module tests import expecttest")
        from torch.testing._internal import common_modules
    return common_modules


@pytest.mark.parametrize("backend", OWN_BACKENDS + KERNELS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_module_inputs(name, training, backend):
    common = torch_module_inputs()
    (info,) = (i for i in common.module_db if i.module_cls is getattr(torch.nn, name))
    options = {} if name == "LSTM" else {"with_packed_sequence": True}
    dtype = torch.float32 if backend == "native" else torch.float64
    tolerance = TOLERANCE[dtype]
    samples = info.module_inputs_func(
        info, "cpu", dtype, requires_grad=True, training=training, **options
    )
    assert len(samples) >= 16
    for sample in samples:
        constructor, arguments = sample.constructor_input, sample.forward_input
        settings = {"dtype": dtype, **constructor.kwargs}
        if backend == "native" and settings.get("proj_size"):
            continue  # refused, see `test_equals_torch`
        ours, theirs = make_pair(name, *constructor.args, backend=backend, **settings)
        inputs, hx = (*arguments.args, None)[:2]
        for module in (ours, theirs):
            module.train(training)
        assert_same(outcome(ours, inputs, hx), outcome(theirs, inputs, hx), tolerance)
        if sample.reference_fn is not None and not isinstance(inputs, PackedSequence):
            expected = sample.reference_fn(ours, *arguments.args)
            for a, e in zip(tensors(ours(inputs, hx)), tensors(expected), strict=True):
                assert torch.allclose(a, e, atol=tolerance / 100)


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_module_errors(name):
    common = torch_module_inputs()
    (info,) = (i for i in common.module_db if i.module_cls is getattr(torch.nn, name))
    samples = info.module_error_inputs_func(
        info, "cpu", torch.float32, requires_grad=False, training=True
    )
    assert samples
    for sample in samples:
        constructor = sample.module_error_input.constructor_input
        arguments = sample.module_error_input.forward_input
        error = call(getattr(recurra.nn, name), constructor, arguments)
        assert type(error) is sample.error_type
        assert re.search(sample.error_regex, str(error))
