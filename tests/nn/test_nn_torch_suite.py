"""recurra.nn with the module test inputs of torch's own test suite."""

import re
import warnings

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import recurra.nn
from nn.pairs import (
    KERNELS,
    NAMES,
    OWN_BACKENDS,
    TOLERANCE,
    assert_same,
    make_pair,
    outcome,
    raised_error,
    tensors,
)


def torch_common_modules():
    """Return torch's module that lists its module test inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("expecttest", reason="torch's module tests import expecttest")
        from torch.testing._internal import common_modules
    return common_modules


@pytest.mark.parametrize("backend", OWN_BACKENDS + KERNELS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_module_equals_torch_on_inputs_of_torch_test_suite(name, training, backend):
    common = torch_common_modules()
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
            continue  # the kernels have no projected LSTM
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
def test_module_raises_errors_of_torch_test_suite(name):
    common = torch_common_modules()
    (info,) = (i for i in common.module_db if i.module_cls is getattr(torch.nn, name))
    samples = info.module_error_inputs_func(
        info, "cpu", torch.float32, requires_grad=False, training=True
    )
    assert samples
    for sample in samples:
        constructor = sample.module_error_input.constructor_input
        arguments = sample.module_error_input.forward_input
        error = raised_error(getattr(recurra.nn, name), constructor, arguments)
        assert type(error) is sample.error_type
        assert re.search(sample.error_regex, str(error))
