"""The recurrent layers and language models of edition 1.0, compared with torch.nn."""

import pytest
import torch
from torch import nn

from recurra import d2l
from recurra import nn as recurra_nn
from recurra.errors import ConfigError

V, H, T, B = 6, 4, 7, 3


def torch_layer(scratch):
    """Return the layer of torch.nn with the weights of a scratch layer, and the gate names."""
    kinds = {d2l.RNNScratch: (nn.RNN, "h"), d2l.LSTMScratch: (nn.LSTM, "ifco")}
    layer_class, gates = kinds[type(scratch)]
    layer = layer_class(V, H)
    # The single gate of the RNN has the weights W_xh and W_hh.
    with torch.no_grad():
        for name, prefix in (("weight_ih_l0", "W_x"), ("weight_hh_l0", "W_h")):
            parts = [getattr(scratch, prefix + gate).T for gate in gates]
            getattr(layer, name).copy_(torch.cat(parts))
        layer.bias_ih_l0.copy_(torch.cat([getattr(scratch, "b_" + gate) for gate in gates]))
        layer.bias_hh_l0.zero_()
    return layer, gates


def with_random_bias(layer):
    for name, param in layer.named_parameters():
        if name.startswith("b_"):
            nn.init.normal_(param)
    return layer


@pytest.mark.parametrize("scratch_class", [d2l.RNNScratch, d2l.LSTMScratch])
def test_scratch_layer_equals_torch_in_outputs_state_and_gradients(scratch_class):
    scratch = with_random_bias(scratch_class(V, H, sigma=0.5))
    layer, gates = torch_layer(scratch)
    x, probe = torch.randn(T, B, V), torch.randn(T, B, H)
    outputs, state = scratch(x)
    want, want_state = layer(x)
    torch.testing.assert_close(torch.stack(outputs), want)
    parts = state if isinstance(state, tuple) else (state,)
    want_parts = want_state if isinstance(want_state, tuple) else (want_state,)
    for part, want_part in zip(parts, want_parts, strict=True):
        torch.testing.assert_close(part[None], want_part)
    (torch.stack(outputs) * probe).sum().backward()
    (want * probe).sum().backward()
    for name, prefix in (("weight_ih_l0", "W_x"), ("weight_hh_l0", "W_h"), ("bias_ih_l0", "b_")):
        grads = [getattr(scratch, prefix + gate).grad for gate in gates]
        want_grad = getattr(layer, name).grad.movedim(0, -1)
        torch.testing.assert_close(torch.cat(grads, dim=-1), want_grad)


def test_gru_scratch_equals_equations_of_the_book():
    gru = with_random_bias(d2l.GRUScratch(V, H, sigma=0.5))
    x, hidden = torch.randn(T, B, V), torch.randn(B, H)
    outputs, last = gru(x, hidden)
    for t in range(T):
        z = torch.sigmoid(x[t] @ gru.W_xz + hidden @ gru.W_hz + gru.b_z)
        r = torch.sigmoid(x[t] @ gru.W_xr + hidden @ gru.W_hr + gru.b_r)
        candidate = torch.tanh(x[t] @ gru.W_xh + (r * hidden) @ gru.W_hh + gru.b_h)
        hidden = z * hidden + (1 - z) * candidate
        torch.testing.assert_close(outputs[t], hidden)
    assert outputs[-1] is last


@pytest.mark.parametrize("layer_class", [d2l.RNNScratch, d2l.GRUScratch, d2l.LSTMScratch])
def test_scratch_layer_continues_from_state(layer_class):
    layer = with_random_bias(layer_class(V, H, sigma=0.5))
    x = torch.randn(T, B, V)
    outputs, last = layer(x)
    first, state = layer(x[:3])
    rest, state = layer(x[3:], state)
    torch.testing.assert_close(torch.stack([*first, *rest]), torch.stack(outputs))
    torch.testing.assert_close(state, last)


def test_rnn_scratch_accepts_state_in_tuple():
    rnn = d2l.RNNScratch(V, H, sigma=0.5)
    x, state = torch.randn(T, B, V), torch.randn(B, H)
    assert torch.equal(rnn(x, (state,))[1], rnn(x, state)[1])


@pytest.mark.parametrize("layer_class", [d2l.RNNScratch, d2l.GRUScratch, d2l.LSTMScratch])
def test_scratch_layer_starts_with_small_weights_and_zero_bias(layer_class):
    layer = layer_class(100, 80, sigma=0.02)
    for name, param in layer.named_parameters():
        if name.startswith("b_"):
            assert param.shape == (80,)
            assert not param.any()
        else:
            assert param.shape == (100 if name.startswith("W_x") else 80, 80)
            assert param.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.hparams == {"num_inputs": 100, "num_hiddens": 80, "sigma": 0.02}


@pytest.mark.parametrize(
    ("make", "torch_class", "options"),
    [
        (d2l.RNN, nn.RNN, {}),
        (d2l.LSTM, nn.LSTM, {}),
        (d2l.GRU, nn.GRU, {}),
        (d2l.GRU, nn.GRU, {"num_layers": 2}),
        (d2l.LSTM, nn.LSTM, {"num_layers": 3}),
    ],
)
def test_concise_layer_is_recurra_layer_and_equals_torch(make, torch_class, options):
    model, layer = make(V, H, **options), torch_class(V, H, **options)
    assert type(model.rnn) is getattr(recurra_nn, torch_class.__name__)
    layer.load_state_dict(model.rnn.state_dict())
    x, probe = torch.randn(T, B, V), torch.randn(T, B, H)
    outputs, state = model(x)
    want, want_state = layer(x)
    torch.testing.assert_close(outputs, want)
    torch.testing.assert_close(state, want_state)
    torch.testing.assert_close(model(x, state)[0], layer(x, want_state)[0])
    (outputs * probe).sum().backward()
    (want * probe).sum().backward()
    for param, want_param in zip(model.rnn.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(param.grad, want_param.grad)


def test_rnn_lm_scratch_logits_and_gradients_equal_torch():
    rnn = with_random_bias(d2l.RNNScratch(V, H, sigma=0.5))
    model = d2l.RNNLMScratch(rnn, vocab_size=V, lr=1)
    nn.init.normal_(model.b_q)
    layer, _ = torch_layer(rnn)
    ids, targets = torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T))
    logits = model(ids)
    hidden, _ = layer(nn.functional.one_hot(ids.T, V).float())
    want = (hidden @ model.W_hq + model.b_q).transpose(0, 1)
    torch.testing.assert_close(logits, want)
    loss = model.loss(logits, targets)
    want_loss = nn.functional.cross_entropy(want.reshape(-1, V), targets.reshape(-1))
    torch.testing.assert_close(loss, want_loss)
    loss.backward()
    got = rnn.W_hh.grad.clone(), model.W_hq.grad.clone()
    model.zero_grad()
    want_loss.backward()
    torch.testing.assert_close(got[0], layer.weight_hh_l0.grad.T)
    torch.testing.assert_close(got[1], model.W_hq.grad)


@pytest.mark.parametrize("make", [d2l.RNN, d2l.GRU, d2l.LSTM])
def test_rnn_lm_logits_equal_linear_of_outputs(make):
    rnn = make(V, H)
    model = d2l.RNNLM(rnn, vocab_size=V, lr=1)
    ids, state = torch.randint(0, V, (B, T)), None
    logits = model(ids, state)
    outputs, _ = rnn(nn.functional.one_hot(ids.T, V).float())
    torch.testing.assert_close(logits, model.linear(outputs.transpose(0, 1)))
    assert logits.shape == (B, T, V)


def greedy(model, vocab, prefix, num_preds):
    """Return the continuation that the model gives if it reads the whole text for each token."""
    ids = [vocab[token] for token in prefix]
    for _ in range(num_preds):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return "".join(vocab.idx_to_token[i] for i in ids)


def sharpened(model):
    """Return the model with larger weights, so that its predictions differ from each other."""
    model(torch.zeros(1, 1, dtype=torch.int64))
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(0, 1)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: d2l.RNNLMScratch(d2l.RNNScratch(V, H), V),
        lambda: d2l.RNNLMScratch(d2l.GRUScratch(V, H), V),
        lambda: d2l.RNNLMScratch(d2l.LSTMScratch(V, H), V),
        lambda: d2l.RNNLM(d2l.RNN(V, H), V),
        lambda: d2l.RNNLM(d2l.GRU(V, H, num_layers=2), V),
        lambda: d2l.RNNLM(d2l.LSTM(V, H), V),
    ],
)
def test_predict_equals_reading_whole_text_for_each_token(make):
    torch.manual_seed(1)
    model, vocab = sharpened(make()), d2l.SortedVocab(list("abcde"))
    text = model.predict("cab", 15, vocab)
    assert text == greedy(model, vocab, "cab", 15)
    assert len(set(text)) > 1
    assert model.predict("cab", 0, vocab) == "cab"
    assert model.predict("c?b", 0, vocab, "cpu") == "c<unk>b"


def test_predict_applies_no_dropout_and_restores_mode():
    gru = d2l.GRU(V, H, num_layers=2, dropout=0.9)
    model, vocab = sharpened(d2l.RNNLM(gru, V)), d2l.SortedVocab(list("abcde"))
    model.train()
    texts = {model.predict("ab", 20, vocab) for _ in range(5)}
    assert len(texts) == 1
    assert model.training
    model.eval()
    assert texts == {model.predict("ab", 20, vocab)}
    assert not model.training


def test_rnn_lm_scratch_with_concise_layer_raises():
    with pytest.raises(ConfigError, match="use RNNLM"):
        d2l.RNNLMScratch(d2l.GRU(V, H), V)


def test_predict_empty_prefix_raises():
    model = d2l.RNNLMScratch(d2l.RNNScratch(V, H), V)
    with pytest.raises(ConfigError, match="prefix"):
        model.predict("", 3, d2l.SortedVocab(list("abcde")))
