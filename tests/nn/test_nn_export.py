"""recurra.nn in exports, traces, torch.compile, and with fake tensors and subclasses."""

import copy
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import recurra.nn
from nn.pairs import (
    BATCH,
    FLOAT32_TOLERANCE,
    HIDDEN,
    INPUT,
    STEPS,
    assert_close,
    assert_same,
    auto_pair,
    every_cell,
    inputs_of,
    outcome,
    tensors,
)


@pytest.mark.filterwarnings("ignore")
@every_cell
def test_export_equals_torch_and_accepts_other_batch_sizes(name, options):
    ours, theirs = auto_pair(name, **options)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(ours, (inputs_of(),), dynamic_shapes=({1: batch},))
    x = torch.randn(STEPS, 2 * BATCH, INPUT)
    for actual, expected in zip(tensors(program.module()(x)), tensors(theirs(x)), strict=True):
        assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore")
@every_cell
def test_traced_module_equals_torch_with_other_lengths(name, options):
    ours, theirs = auto_pair(name, **options)
    traced = torch.jit.trace(ours, (inputs_of(),))
    x = torch.randn(2 * STEPS, BATCH + 1, INPUT)
    for actual, expected in zip(tensors(traced(x)), tensors(theirs(x)), strict=True):
        assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore")
def test_strict_export_equals_torch():
    ours, theirs = auto_pair("LSTM")
    x = inputs_of()
    with torch._dynamo.config.patch(allow_rnn=True):
        program = torch.export.export(ours, (x,), strict=True)
    assert_close(program.module()(x)[0], theirs(x)[0])


@pytest.mark.filterwarnings("ignore")
def test_compile_of_whole_graph_with_allow_rnn_equals_torch():
    ours, theirs = auto_pair("GRU")
    x = inputs_of()
    with torch._dynamo.config.patch(allow_rnn=True):
        found = torch.compile(ours, backend="eager", fullgraph=True)(x)[0]
    assert_close(found, theirs(x)[0])


def test_module_with_fake_and_meta_tensors_gives_shapes_of_torch():
    for device in ("meta", "cpu"):
        with FakeTensorMode():
            layer = recurra.nn.GRU(INPUT, HIDDEN, device=device)
            outputs, _ = layer(torch.empty(STEPS, BATCH, INPUT, device=device))
        assert outputs.shape == (STEPS, BATCH, HIDDEN)
    layer = recurra.nn.GRU(INPUT, HIDDEN, device="meta")
    assert layer(torch.empty(STEPS, BATCH, INPUT, device="meta"))[0].is_meta


def test_module_with_tensor_subclass_equals_torch():
    class Tagged(torch.Tensor):
        pass

    ours, theirs = auto_pair("GRU")
    x = inputs_of()
    assert_close(ours(x.as_subclass(Tagged))[0].as_subclass(torch.Tensor), theirs(x)[0])


def test_export_leaves_layer_usable():
    ours, theirs = auto_pair("GRU")
    before = copy.deepcopy(ours.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(ours, (inputs_of(),))
    x = inputs_of()
    assert_same(outcome(ours, x, None), outcome(theirs, x, None), FLOAT32_TOLERANCE)
    for key, value in before.items():
        assert torch.equal(ours.state_dict()[key], value)
