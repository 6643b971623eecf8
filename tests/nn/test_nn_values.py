"""recurra.nn against torch.nn: values, states, all gradients, dropout, packing."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import recurra.nn
from nn.pairs import (
    BATCH,
    CELL_IDS,
    CELLS,
    HIDDEN,
    INPUT,
    KERNELS,
    LENGTHS,
    NAMES,
    OWN_BACKENDS,
    STEPS,
    TOLERANCE,
    assert_same,
    make_inputs,
    make_pair,
    make_state,
    outcome,
)
from recurra.errors import ConfigError

FORMS = [
    *((form, torch.float64) for form in ("padded", "unbatched", *LENGTHS)),
    *((form, torch.float32) for form in ("padded", "unsorted")),
]


# batch_first, bias, with initial state
CASES = [(False, True, True), (True, False, True), (True, True, False)]


def assert_unsupported(name, dtype, options):
    module, _ = make_pair(name, INPUT, HIDDEN, backend="native", dtype=dtype, **options)
    with pytest.raises(ConfigError, match=r"compiled kernels|native backend"):
        module(torch.randn(STEPS, BATCH, INPUT, dtype=dtype))


@pytest.mark.parametrize(("form", "dtype"), FORMS, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)
@pytest.mark.parametrize("backend", OWN_BACKENDS + KERNELS)
def test_module_values_and_gradients_equal_torch(
    backend, name, options, num_layers, bidirectional, form, dtype
):
    if backend == "native" and (dtype == torch.float64 or "proj_size" in options):
        assert_unsupported(name, dtype, options)
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
def test_module_packed_output_keeps_order_of_input(name):
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
def test_module_dropout_with_same_seed_equals_torch(dtype, name, bidirectional, form, backend):
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
    eval_outcome = outcome(ours.eval(), inputs, None)
    assert_same(eval_outcome, outcome(theirs.eval(), inputs, None), TOLERANCE[dtype])
    assert not torch.allclose(eval_outcome["result 0"], results[0]["result 0"])


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_module_dropout_of_zero_or_one_equals_torch(dropout):
    ours, theirs = make_pair("GRU", INPUT, HIDDEN, 2, dropout=dropout)
    inputs, _ = make_inputs("padded", False, torch.float64)
    assert_same(outcome(ours, inputs, None), outcome(theirs, inputs, None), 1e-10)


def test_module_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="dropout"):
        recurra.nn.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("name", NAMES)
def test_module_same_seed_gives_state_dict_of_torch(name, options):
    torch.manual_seed(11)
    ours = getattr(recurra.nn, name)(3, 4, **options)
    torch.manual_seed(11)
    theirs = getattr(torch.nn, name)(3, 4, **options)
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    theirs.load_state_dict(ours.state_dict())
