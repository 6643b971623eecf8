"""`recurra.nn.record_states`: total derivatives with respect to the state of each step.

They are compared with autograd on the equations, unrolled in a loop, where each state is a tensor
with `retain_grad`.
"""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from recurra import d2l, nn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")

T, B, WIDTH, H = 6, 3, 4, 5

CASES = {
    "rnn": (nn.RNN, {}),
    "rnn-relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "lstm-without-bias": (nn.LSTM, {"bias": False}),
    "rnn-3-layers": (nn.RNN, {"num_layers": 3}),
    "gru-2-layers-both-directions": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "lstm-2-layers-both-directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm-2-layers-projected": (nn.LSTM, {"num_layers": 2, "proj_size": 2}),
}


def step(layer, weights, x, state):
    """Return the state after one step of the equations of torch.nn."""
    bias_ih, bias_hh = (weights[2], weights[3]) if layer.bias else (None, None)
    read = torch.nn.functional.linear(x, weights[0], bias_ih)
    recurrent = torch.nn.functional.linear(state[0], weights[1], bias_hh)
    if layer.mode == "LSTM":
        i, f, g, o = (read + recurrent).chunk(4, dim=1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h @ weights[-1].T if layer.proj_size else h), c
    if layer.mode == "GRU":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = read.chunk(3, dim=1), recurrent.chunk(3, dim=1)
        z = (x_z + h_z).sigmoid()
        return ((1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * state[0],)
    total = read + recurrent
    return (total.tanh() if layer.mode == "RNN_TANH" else total.relu(),)


def unroll(layer, x, initial):
    """Return the outputs, and the states of each layer and direction by step, which keep grads."""
    directions, kept = 1 + layer.bidirectional, []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            index = number * directions + direction
            state, states = tuple(part[index] for part in initial), {}
            for t in range(len(x))[:: -1 if direction else 1]:
                state = states[t] = step(layer, layer.all_weights[index], x[t], state)
                for part in state:
                    part.retain_grad()
            kept.append([states[t] for t in range(len(x))])
            outputs.append(torch.stack([states[t][0] for t in range(len(x))]))
        x = torch.cat(outputs, dim=2)
    return x, kept


def stacked(kept, number):
    """Return the gradients of part `number` of the states, (L*D, T, B, H)."""
    return torch.stack([
        torch.stack([torch.zeros_like(s[number]) if s[number].grad is None else s[number].grad
                     for s in states])
        for states in kept
    ])  # fmt: skip


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def initial_state(layer, batch=B):
    sizes = [layer.proj_size or H, H] if layer.mode == "LSTM" else [H]
    sweeps = layer.num_layers * (1 + layer.bidirectional)
    return tuple(torch.randn(sweeps, batch, size, dtype=torch.float64) for size in sizes)


def in_form_of_hx(state):
    return state if len(state) == 2 else state[0]


@pytest.fixture(params=CASES)
def layer(request):
    layer_class, options = CASES[request.param]
    return layer_class(WIDTH, H, dtype=torch.float64, **options)


def weighted(outputs, final, probes):
    """Return a loss to which all outputs and the final state contribute."""
    return sum((t * p).sum() for t, p in zip((outputs, *final), probes, strict=True))


def test_record_states_gradients_equal_unrolled_autograd(layer):
    x, initial = torch.randn(T, B, WIDTH, dtype=torch.float64), initial_state(layer)
    with nn.record_states(layer) as record:
        outputs, final = layer(x, in_form_of_hx(initial))
    final = as_tuple(final)
    probes = [torch.randn_like(t) for t in (outputs, *final)]
    got = as_tuple(record.gradients(weighted(outputs, final, probes)))

    want_outputs, kept = unroll(layer, x, initial)
    torch.testing.assert_close(want_outputs, outputs)
    sweeps = [(states, bool(i % 2) and layer.bidirectional) for i, states in enumerate(kept)]
    want_final = [
        torch.stack([states[0 if backward else -1][n] for states, backward in sweeps])
        for n in range(len(initial))
    ]
    weighted(want_outputs, want_final, probes).backward()
    assert len(got) == len(initial)
    for number, gradient in enumerate(got):
        torch.testing.assert_close(gradient, stacked(kept, number))
        values = torch.stack([torch.stack([s[number] for s in states]) for states in kept])
        torch.testing.assert_close(as_tuple(record.states)[number], values.detach())


def test_record_states_gradient_is_more_than_direct_part():
    layer, x = nn.GRU(WIDTH, H), torch.randn(T, B, WIDTH)
    with nn.record_states(layer) as record:
        outputs, _ = layer(x)
        loss = outputs.square().sum()
    total = record.gradients(loss)
    (direct,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(total[0, -1], direct[-1])
    assert not torch.allclose(total[0, 0], direct[0], rtol=0.01)
    # A loss of the last step only: the direct part of all earlier steps is zero.
    with nn.record_states(layer) as record:
        last = layer(x)[0][-1].sum()
    assert (record.gradients(last)[0].flatten(1).norm(dim=1) > 0).all()


def test_record_states_values_and_parameter_gradients_equal_layer(layer):
    x, initial = torch.randn(T, B, WIDTH, dtype=torch.float64), initial_state(layer)
    with nn.record_states(layer) as record:
        outputs, final = layer(x, in_form_of_hx(initial))
    loss = outputs.square().sum()
    record.gradients(loss)
    loss.backward()  # The graph is kept.
    grads = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    want, want_final = layer(x, in_form_of_hx(initial))
    want.square().sum().backward()
    torch.testing.assert_close(outputs, want)
    torch.testing.assert_close(final, want_final)
    for grad, param in zip(grads, layer.parameters(), strict=True):
        torch.testing.assert_close(grad, param.grad)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_record_states_batch_first_and_unbatched_equal_time_major(bidirectional):
    layer = nn.LSTM(WIDTH, H, num_layers=2, bidirectional=bidirectional)
    x = torch.randn(T, B, WIDTH)

    def gradients(net, inputs):
        with nn.record_states(net) as record:
            loss = net(inputs)[0].square().sum()
        return record.gradients(loss)

    want = gradients(layer, x)
    first = copy.deepcopy(layer)
    first.batch_first = True
    torch.testing.assert_close(gradients(first, x.transpose(0, 1)), want)
    for row in range(B):
        for got, all_rows in zip(gradients(layer, x[:, row]), want, strict=True):
            assert got.shape == (2 * (1 + bidirectional), T, H)
            torch.testing.assert_close(got, all_rows[:, :, row])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_record_states_packed_sequences_equal_each_sequence_alone(name):
    layer = getattr(nn, name)(WIDTH, H, num_layers=2, bidirectional=True)
    lengths, x = [3, 6, 1, 6], torch.randn(T, 4, WIDTH)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    with nn.record_states(layer) as record:
        outputs, _ = layer(packed)
    loss = pad_packed_sequence(outputs)[0].square().sum()
    got, states = as_tuple(record.gradients(loss)), as_tuple(record.states)
    for row, length in enumerate(lengths):
        with nn.record_states(layer) as alone:
            row_loss = layer(x[:length, row])[0].square().sum()
        for part, want in zip(got, as_tuple(alone.gradients(row_loss)), strict=True):
            torch.testing.assert_close(part[:, :length, row], want)
            assert not part[:, length:, row].any()
        for part, want in zip(states, as_tuple(alone.states), strict=True):
            torch.testing.assert_close(part[:, :length, row], want)


def test_record_states_within_model_records_only_that_layer():
    model = d2l.RNNModel(nn.LSTM(7, H), 7)
    ids = torch.randint(0, 7, (B, T))
    with nn.record_states(model.rnn) as record:
        logits, _ = model(ids)
        loss = torch.nn.functional.cross_entropy(logits, torch.randint(0, 7, (B * T,)))
    h_grad, c_grad = record.gradients(loss)
    assert h_grad.shape == c_grad.shape == (1, T, B, H)
    assert h_grad[0, -1].abs().sum() > 0


def test_record_states_frozen_layer_has_gradients():
    layer, x = nn.GRU(WIDTH, H), torch.randn(T, B, WIDTH)
    with nn.record_states(layer) as record:
        loss = layer(x)[0].square().sum()
    want = record.gradients(loss)
    layer.requires_grad_(False)
    with nn.record_states(layer) as record:
        loss = layer(x)[0].square().sum()
    torch.testing.assert_close(record.gradients(loss), want)


def test_record_states_dropout_draws_mask_of_layer():
    layer, x = nn.LSTM(WIDTH, H, num_layers=2, dropout=0.5), torch.randn(T, B, WIDTH)
    torch.manual_seed(2)
    with nn.record_states(layer):
        outputs, _ = layer(x)
    torch.manual_seed(2)
    torch.testing.assert_close(outputs, layer(x)[0])


def test_record_states_under_autocast_keeps_dtypes():
    layer, x = nn.GRU(WIDTH, H), torch.randn(T, B, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        want = layer(x)[0]
        with nn.record_states(layer) as record:
            outputs, _ = layer(x)
    assert outputs.dtype == want.dtype
    torch.testing.assert_close(outputs, want, rtol=0.02, atol=0.02)
    assert record.gradients(outputs.float().sum()).isfinite().all()


def test_record_states_ends_with_block_even_after_error():
    layer = nn.LSTM(WIDTH, H)
    with pytest.raises(ZeroDivisionError), nn.record_states(layer):
        raise ZeroDivisionError
    assert layer._state_record is None
    layer(torch.randn(T, B, WIDTH))
    layer(torch.randn(T, B, WIDTH))


def test_record_states_wrong_use_raises():
    layer, x = nn.RNN(WIDTH, H), torch.randn(T, B, WIDTH)
    with (
        pytest.raises(TypeError, match="load_state_dict"),
        nn.record_states(torch.nn.RNN(WIDTH, H)),
    ):
        pass
    with nn.record_states(layer) as record:
        pass
    with pytest.raises(RuntimeError, match="not called"):
        _ = record.states
    with nn.record_states(layer) as record:
        outputs, _ = layer(x)
        with pytest.raises(RuntimeError, match="called twice"):
            layer(x)
    with pytest.raises(RuntimeError, match="scalar"):
        record.gradients(outputs)
    with torch.no_grad(), nn.record_states(layer) as record:
        outputs, _ = layer(x)
    with pytest.raises(RuntimeError, match="grad"):
        record.gradients(outputs.sum())
