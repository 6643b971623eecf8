"""`RNNModel`, `RNNModelScratch` and the one-hot helpers of `recurra.d2l`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recurra import d2l
from recurra import nn as recurra_nn
from recurra.errors import ConfigError

# torch warns once that it computes projected LSTMs without oneDNN.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")

V, H = 6, 4
LAYERS = {
    "rnn": lambda: nn.RNN(V, H),
    "gru": lambda: nn.GRU(V, H),
    "lstm": lambda: nn.LSTM(V, H),
    "two-layers": lambda: nn.GRU(V, H, num_layers=2),
    "both-directions": lambda: nn.LSTM(V, H, bidirectional=True),
    "projected": lambda: nn.LSTM(V, H, proj_size=3, num_layers=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rnn_model_logits_equal_linear_of_rnn_outputs(name):
    net = d2l.RNNModel(LAYERS[name](), vocab_size=V)
    ids = torch.randint(0, V, (3, 5))
    state = net.begin_state(batch_size=3, device="cpu")
    logits, new_state = net(ids, state)
    outputs, expected_state = net.rnn(F.one_hot(ids.T, V).float(), state)
    assert torch.equal(logits, net.linear(outputs.reshape(15, -1)))
    for got, want in zip(_parts(new_state), _parts(expected_state), strict=True):
        assert torch.equal(got, want)


def _parts(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("name", LAYERS)
def test_rnn_model_state_defaults_to_zeros(name):
    net = d2l.RNNModel(LAYERS[name](), vocab_size=V)
    ids = torch.randint(0, V, (3, 5)).float()  # v1's ids are floats
    start = net.begin_state("cpu", 3)
    assert all(not part.any() for part in _parts(start))
    assert torch.equal(net(ids)[0], net(ids, start)[0])
    assert torch.equal(net(ids, None)[0], net(ids, start)[0])


def test_begin_state_is_pair_for_lstm_else_tensor():
    assert d2l.RNNModel(nn.GRU(V, H), V).begin_state("cpu").shape == (1, 1, H)
    pair = d2l.RNNModel(nn.LSTM(V, H, 2, bidirectional=True), V).begin_state("cpu", batch_size=3)
    assert [part.shape for part in pair] == [(4, 3, H), (4, 3, H)]


def test_rnn_model_accepts_state_in_tuple():
    net = d2l.RNNModel(nn.RNN(V, H), V)
    ids, state = torch.randint(0, V, (2, 3)), torch.randn(1, 2, H)
    assert torch.equal(net(ids, (state,))[0], net(ids, state)[0])


def test_rnn_model_wrong_layer_or_state_raises():
    with pytest.raises(ConfigError, match="batch_first"):
        d2l.RNNModel(nn.RNN(V, H, batch_first=True), V)
    with pytest.raises(ConfigError, match="input_size"):
        d2l.RNNModel(nn.RNN(5, H), V)
    with pytest.raises(ConfigError, match="pair"):
        d2l.RNNModel(nn.LSTM(V, H), V)(torch.zeros(1, 1), torch.zeros(1, 1, H))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_rnn_model_of_recurra_layer_equals_torch(name):
    torch_net = d2l.RNNModel(getattr(nn, name)(V, H), V)
    net = d2l.RNNModel(getattr(recurra_nn, name)(V, H), V)
    net.load_state_dict(torch_net.state_dict())
    ids = torch.randint(0, V, (3, 5))
    got, state = net(ids, net.begin_state("cpu", 3))
    want, want_state = torch_net(ids, torch_net.begin_state("cpu", 3))
    torch.testing.assert_close(got, want)
    for part, want_part in zip(_parts(state), _parts(want_state), strict=True):
        torch.testing.assert_close(part, want_part)


def test_rnn_model_scratch_passes_one_hot_inputs_to_forward():
    received = {}

    def forward(inputs, state, params):
        received.update(inputs=inputs, state=state, params=params)
        return inputs.reshape(-1, V), ("next",)

    net = d2l.RNNModelScratch(
        V, H, "cpu", lambda *args: ["weights", *args], lambda *args: args, forward
    )
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    logits, state = net(ids, "first")
    assert logits.argmax(dim=1).tolist() == [0, 3, 1, 4, 2, 5]  # time-major order
    assert state == ("next",)
    assert received["params"] is net.params
    assert net.params == ["weights", V, H, "cpu"]
    assert received["state"] == "first"
    assert torch.equal(received["inputs"], F.one_hot(ids.T, V).float())
    assert net.begin_state(batch_size=7, device="cpu") == (7, H, "cpu")


def test_one_hot_and_to_onehot_encode_ids():
    assert d2l.one_hot(torch.tensor([0.0, 2.0]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]
    steps = d2l.to_onehot(torch.tensor([[0, 1], [2, 0]]), 3)
    assert [step.tolist() for step in steps] == [
        [[1, 0, 0], [0, 0, 1]],
        [[0, 1, 0], [1, 0, 0]],
    ]
    assert steps[0].dtype == torch.float32
