"""recurra.nn under autocast, compared with the dtypes and values of torch.nn."""

import pytest
import torch

from nn.pairs import (
    BATCH,
    HIDDEN,
    INPUT,
    NAMES,
    auto_pair,
    every_cell,
    inputs_of,
    make_inputs,
    make_pair,
    make_state,
    tensors,
)


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_gives_dtypes_and_values_of_torch(name, weight_dtype, input_dtype, state_dtype):
    ours, theirs = make_pair(name, INPUT, HIDDEN, 2, backend="auto", dtype=weight_dtype)
    x, hx = inputs_of(input_dtype), None
    if state_dtype is not None:
        hx = torch.randn(2, BATCH, HIDDEN, dtype=state_dtype)
        hx = (hx, hx) if name == "LSTM" else hx
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = ours(x, hx), theirs(x, hx)
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert a.dtype == e.dtype
        assert float((a.float() - e.float()).detach().abs().max()) < 0.05


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_autocast_in_fp16_gives_dtypes_of_torch(name):
    ours, theirs = make_pair(name, INPUT, HIDDEN, backend="auto", dtype=torch.float32)
    x = inputs_of()
    with torch.autocast("cpu", dtype=torch.float16):
        actual, expected = ours(x), theirs(x)
    assert [t.dtype for t in tensors(actual)] == [t.dtype for t in tensors(expected)]


@pytest.mark.parametrize("backend", ["auto", "reference", "bptt"])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_in_fp16_rounds_operands_to_fp16(name, backend):
    ours, _ = make_pair(name, INPUT, HIDDEN, backend=backend, dtype=torch.float32)
    x = inputs_of()
    exact = ours(x)[0]
    differences = []
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            outputs, _ = ours(x)
        outputs.float().sum().backward()
        differences.append(float((outputs.float() - exact).detach().abs().max()))
    # fp16 has 11 bits and bf16 has 8.
    assert 1e-6 < differences[0] < 2e-3
    assert differences[0] < differences[1] / 2


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
@every_cell
def test_autocast_of_packed_sequence_gives_dtypes_of_torch(name, options, state_dtype):
    ours, theirs = auto_pair(name, **options)
    inputs, batch = make_inputs("unsorted", False, torch.float32)
    hx = make_state(ours, batch)
    if state_dtype is None:
        hx = None
    elif name == "LSTM":
        hx = tuple(h.to(state_dtype) for h in hx)
    else:
        hx = hx.to(state_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = ours(inputs, hx), theirs(inputs, hx)
    assert [t.dtype for t in tensors(actual)] == [t.dtype for t in tensors(expected)]
