"""Conformance checks for cells, backends, optimizers and vocabularies.

Every component must pass the check of its interface, including the toy components of
test_recipes.py.
"""

import copy
import itertools
import json

import pytest
import torch

from recurra.config import ModelConfig, TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.engine.optimizers import apply_update, build_optimizer
from recurra.model import RecurrentLM
from recurra.recurrence import layer
from recurra.recurrence.backends import find_backend, requirements_of
from recurra.recurrence.cells import LayerParameters, find_cell
from recurra.text.vocabularies import vocabulary_from_dict
from support.layers import assert_same, layer_outcome, leaves_of, make_layer


def make_case(name, steps=5, batch=3, inputs=4, units=6, dtype=torch.float64):
    """Return a cell, inputs, an initial state and parameters, which require gradients."""
    torch.manual_seed(0)
    cell = find_cell(name)
    parameters = make_layer(name, inputs, units, dtype)
    numbers = torch.randn(steps, batch, inputs, dtype=dtype).requires_grad_()
    state = tuple(
        torch.randn(batch, units, dtype=dtype).requires_grad_() for _ in range(cell.num_states)
    )
    return cell, numbers, state, parameters


def check_cell(name):
    """Check shapes, independence of rows and of windows, and gradients of a cell."""
    cell, inputs, state, parameters = make_case(name)
    outputs, final = layer.run(name, inputs, state, parameters, "reference")
    assert outputs.shape == (5, 3, 6)
    assert [part.shape for part in final] == [(3, 6)] * cell.num_states
    # Rows do not influence each other.
    row = tuple(part[1:2] for part in state)
    alone, alone_final = layer.run(name, inputs[:, 1:2], row, parameters, "reference")
    assert_same([alone, *alone_final], [outputs[:, 1:2], *(p[1:2] for p in final)], 1e-12)
    # The state is all that a window needs to know of the past.
    first, middle = layer.run(name, inputs[:2], state, parameters, "reference")
    second, end = layer.run(name, inputs[2:], middle, parameters, "reference")
    assert_same([torch.cat([first, second]), *end], [outputs, *final], 1e-12)
    # `step` changes none of its arguments.
    before = copy.deepcopy((inputs, state))
    layer.run(name, inputs, state, parameters, "reference")
    assert torch.equal(before[0], inputs)
    assert all(map(torch.equal, before[1], state))
    check_cell_gradients(name)


def check_cell_gradients(name):
    """Compare the gradients of a cell with finite differences."""
    _, inputs, state, parameters = make_case(name, steps=3, batch=2, inputs=3, units=4)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves_of(inputs, state, [parameters])]
    num_states, num_extra = len(state), len(parameters.extra or ())

    def function(inputs, *rest):
        given = iter(rest[num_states : len(rest) - num_extra])
        of_torch = [None if p is None else next(given) for p in parameters.of_torch]
        own = LayerParameters.from_torch(of_torch)
        own = own._replace(extra=tuple(rest[len(rest) - num_extra :]) or None)
        outputs, final = layer.run(name, inputs, rest[:num_states], own, "reference")
        return outputs, *final

    assert torch.autograd.gradcheck(function, leaves)


def check_backend(name, cells, dtype=torch.float64):
    """Compare a backend with `reference` for every cell: outputs, states and all gradients.

    Returns:
        The names of the cells that it supports.
    """
    supported = []
    for cell_name, steps in itertools.product(cells, (1, 7)):
        cell, inputs, state, parameters = make_case(cell_name, steps=steps, dtype=dtype)
        reason = find_backend(name).unsupported(requirements_of(cell, inputs, state, parameters))
        if reason is not None:
            assert isinstance(reason, str)
            assert reason
            continue
        supported.append(cell_name)
        found = [
            layer_outcome(cell_name, inputs, state, parameters, backend)
            for backend in (name, "reference")
        ]
        assert_same(*found, tolerance=1e-10 if dtype == torch.float64 else 2e-5)
    return sorted(set(supported))


def check_optimizer(name, **options):
    """Check that an optimizer learns, keeps the slots of its row, skips failures and resumes."""
    model = _train_a_little(name, 0, **options)[0]
    before = [p.detach().clone() for p in model.parameters()]
    model, optimizer = _train_a_little(name, 6, **options)
    spec = OPTIMIZERS[name]
    config = TrainingConfig(optimizer=name, steps=1, **options)
    expected = {*spec.slots_with(config), *(["step"] if spec.counts_steps else [])}
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)
        slots = optimizer.state[parameter]
        assert {k for k, v in slots.items() if v is not None} == expected
        assert all(slots[slot].shape == parameter.shape for slot in spec.slots_with(config))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    apply_update(optimizer, torch.tensor(config.lr), torch.tensor(1.0))
    assert all(map(torch.equal, model.state_dict().values(), kept[0].values()))
    # Half of the steps, saved and loaded, and the other half.
    model, optimizer = _train_a_little(name, 3, **options)
    resumed = _train_a_little(name, 3, start=(model, optimizer.state_dict()), **options)[0]
    assert all(map(torch.equal, resumed.state_dict().values(), kept[0].values()))


def _train_a_little(name, steps, start=None, **options):
    torch.manual_seed(0)
    config = TrainingConfig(optimizer=name, steps=1, **options)
    sizes = {"hidden_size": 8, "embedding_size": 4, "vocab_size": 5}
    model = RecurrentLM(ModelConfig(cell="rnn", backend="reference", **sizes))
    ids = torch.arange(24).view(2, 12) % 5
    losses = []
    if start is not None:
        model = copy.deepcopy(start[0])
    optimizer = build_optimizer(model, config)
    if start is not None:
        optimizer.load_state_dict(start[1])
    for _ in range(steps):
        loss, _ = model.loss(ids, (ids + 1) % 5)
        optimizer.zero_grad()
        loss.backward()
        apply_update(optimizer, torch.tensor(config.lr), torch.tensor(0.0))
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    return model, optimizer


def check_vocabulary(vocabulary, texts):
    """Check encoding, decoding, byte lengths, labels and serialization of a vocabulary."""
    for text in texts:
        ids = vocabulary.encode(text)
        assert ids.dtype == "int64"
        assert ids.ndim == 1
        assert vocabulary.decode(ids) == text
        assert int(vocabulary.byte_lengths(text).sum()) == len(text.encode())
        assert len(vocabulary.byte_lengths(text)) == len(ids)
        decoder = vocabulary.decoder()
        pieces = [decoder.push(int(token)) for token in ids]
        assert "".join(pieces) + decoder.finish() == text
    assert all(vocabulary.label(token).isprintable() for token in range(len(vocabulary)))
    for outside in (-1, len(vocabulary)):
        with pytest.raises(IndexError):
            vocabulary.decode([outside])
    copied = vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert copied == vocabulary
    assert hash(copied) == hash(vocabulary)
    assert copied.fingerprint == vocabulary.fingerprint
    assert len(copied) == len(vocabulary)
