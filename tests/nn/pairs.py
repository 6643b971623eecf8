"""Pairs of a recurra.nn and a torch.nn module with equal weights, and comparisons of both."""

import itertools

import pytest
import torch
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import recurra.nn
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


INPUT, HIDDEN, BATCH, STEPS = 4, 5, 3, 6


def make_pair(name, *args, backend="bptt", dtype=torch.float64, **kwargs):
    """Return a module of recurra.nn and one of torch.nn with the same weights."""
    ours = getattr(recurra.nn, name)(*args, backend=backend, dtype=dtype, **kwargs)
    theirs = getattr(torch.nn, name)(*args, dtype=dtype, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def make_state(module, batch):
    """Return a random initial state; without a batch dimension if `batch` is None."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    middle = () if batch is None else (batch,)
    dtype = module.weight_ih_l0.dtype
    h = torch.randn(rows, *middle, module.proj_size or module.hidden_size, dtype=dtype)
    if not isinstance(module, torch.nn.LSTM):
        return h
    return h, torch.randn(rows, *middle, module.hidden_size, dtype=dtype)


def tensors(value):
    """Return all tensors of an input, state or result, in order."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return list(itertools.chain.from_iterable(tensors(v) for v in value))


def leaf(value):
    """Return a copy of the value whose tensors are leaves that require a gradient."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return value._replace(data=leaf(value.data))
    if isinstance(value, tuple):
        return tuple(leaf(v) for v in value)
    return value.detach().clone().requires_grad_()


def outcome(module, inputs, hx):
    """Return outputs, final state and all gradients of a randomly weighted sum of both."""
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
    """Return an input of this form and its batch size, None if it has no batch dimension."""
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


def raised_error(module_class, constructor, forward):
    """Return the exception that construction or call of a module raises, or None."""
    options = {"backend": "bptt"} if module_class.__module__ == "recurra.nn" else {}
    try:
        module = module_class(*constructor.args, **constructor.kwargs, **options)
        module(*forward.args, **forward.kwargs)
    except Exception as error:
        return error
    return None


FLOAT32_TOLERANCE = 2e-5
every_cell = pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)


def auto_pair(name, **options):
    """Return a pair of two bidirectional fp32 layers, ours with the backend `auto`."""
    settings = {"num_layers": 2, "bidirectional": True} | options
    return make_pair(name, INPUT, HIDDEN, backend="auto", dtype=torch.float32, **settings)


def inputs_of(dtype=torch.float32):
    return torch.randn(STEPS, BATCH, INPUT, dtype=dtype)


def weights_of(module):
    return {key: p.detach() for key, p in module.named_parameters()}


def loss(module, weights, x):
    return functional_call(module, weights, (x,))[0].square().sum()


def loss_gradients(module, x):
    module.zero_grad()
    module(x)[0].square().sum().backward()
    return {key: p.grad.clone() for key, p in module.named_parameters()}


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((actual - expected).detach().abs().max()) < FLOAT32_TOLERANCE * scale
