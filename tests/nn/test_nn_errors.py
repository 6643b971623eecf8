"""recurra.nn against torch.nn: invalid calls raise errors of the same type; repr of modules."""

from typing import NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import recurra.nn
from nn.pairs import NAMES, raised_error
from recurra.errors import ConfigError


class Arguments(NamedTuple):
    args: tuple
    kwargs: dict


def invalid_calls(name):
    """Yield (name, constructor arguments, inputs, hx) of calls with one invalid argument."""

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
    ("name", "description", "arguments", "inputs", "hx"),
    [
        pytest.param(name, *case, id=f"{name}-{case[0]}")
        for name in NAMES
        for case in invalid_calls(name)
    ],
)
def test_module_invalid_call_raises_error_type_of_torch(name, description, arguments, inputs, hx):
    constructor, forward = Arguments(*arguments), Arguments((inputs, hx), {})
    expected = raised_error(getattr(torch.nn, name), constructor, forward)
    actual = raised_error(getattr(recurra.nn, name), constructor, forward)
    assert expected is not None, f"torch accepts {description}"
    assert type(actual) is type(expected), (actual, expected)
    assert str(actual)


def test_module_unknown_backend_error_lists_names():
    with pytest.raises(ConfigError, match="bptt"):
        recurra.nn.LSTM(3, 4, backend="cudnn")


def test_module_repr_shows_backend_unless_auto():
    assert repr(recurra.nn.GRU(3, 4, batch_first=True)) == "GRU(3, 4, batch_first=True)"
    shown = repr(recurra.nn.LSTM(3, 4, num_layers=2, backend="reference"))
    assert shown == "LSTM(3, 4, num_layers=2, backend=reference)"
