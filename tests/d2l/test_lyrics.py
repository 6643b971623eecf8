"""Training and prediction functions of the lyrics chapter of d2l version 1."""

import re

import pytest
import torch
from torch import nn

from recurra import d2l
from recurra.errors import ConfigError

CHARS = list("abcde")
IDS = {char: i for i, char in enumerate(CHARS)}
CORPUS = [0, 1, 2, 3, 4] * 20


def rnn(inputs, state, params):
    weight_xh, weight_hh, bias_h, weight_hq, bias_q = params
    (hidden,) = state
    outputs = []
    for x in inputs:
        hidden = torch.tanh(x @ weight_xh + hidden @ weight_hh + bias_h)
        outputs.append(hidden @ weight_hq + bias_q)
    return outputs, (hidden,)


def get_params():
    shapes = [(5, 8), (8, 8), (8,), (8, 5), (5,)]
    return [nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]


def init_state(batch_size, num_hiddens, device):
    return (torch.zeros(batch_size, num_hiddens, device=device),)


def test_predict_rnn_equals_explicit_loop():
    params = [param * 20 for param in get_params()]
    ids, state = [3, 0, 2], init_state(1, 8, "cpu")
    for i in range(8):
        outputs, state = rnn([torch.eye(5)[ids[i]][None]], state, params)
        if i >= 2:
            ids.append(int(outputs[0].argmax()))
    text = d2l.predict_rnn("dac", 6, rnn, params, init_state, 8, 5, "cpu", CHARS, IDS)
    assert text == "".join(CHARS[i] for i in ids)
    assert len(set(text)) > 1


def test_predict_rnn_pytorch_equals_explicit_loop():
    model = d2l.RNNModel(nn.RNN(5, 8), 5)
    ids = [3, 0]
    _, state = model(torch.tensor([[3]]), None)
    for _ in range(6):
        logits, state = model(torch.tensor([ids[-1:]]), state)
        ids.append(int(logits.argmax()))
    text = d2l.predict_rnn_pytorch("da", 6, model, 5, "cpu", CHARS, IDS)
    assert text == "".join(CHARS[i] for i in ids)


def test_predict_rnn_pytorch_bad_prefix_raises():
    model = d2l.RNNModel(nn.RNN(5, 8), 5)
    with pytest.raises(ConfigError, match="'雨'"):
        d2l.predict_rnn_pytorch("a雨", 6, model, 5, "cpu", CHARS, IDS)
    with pytest.raises(ConfigError, match="empty"):
        d2l.predict_rnn_pytorch("", 6, model, 5, "cpu", CHARS, IDS)


def train_scratch(is_random_iter, num_epochs, lr, get_params=get_params):
    d2l.train_and_predict_rnn(
        *(rnn, get_params, init_state, 8, 5, "cpu", CORPUS, CHARS, IDS, is_random_iter),
        *(num_epochs, 5, lr, 1.0, 4, 20, 7, ["a", "cd"]),
    )


REPORT = re.compile(r"epoch (\d+), perplexity (\d+\.\d{6}), time \d+\.\d\d sec")


def reports(out):
    return [(int(m[1]), float(m[2])) for m in map(REPORT.fullmatch, out.splitlines()) if m]


@pytest.mark.parametrize("is_random_iter", [False, True])
def test_train_and_predict_rnn_learns_cycle(is_random_iter, capsys):
    train_scratch(is_random_iter, 60, lr=1.0)
    out = capsys.readouterr().out
    assert [epoch for epoch, _ in reports(out)] == [20, 40, 60]
    perplexities = [value for _, value in reports(out)]
    assert perplexities == sorted(perplexities, reverse=True)
    assert 1 <= perplexities[-1] < 1.2
    assert out.splitlines()[-2:] == [" - abcdeabc", " - cdeabcdea"]


def test_train_and_predict_rnn_zero_lr_perplexity_is_vocab_size(capsys):
    train_scratch(False, 20, 0.0, zero_params)
    assert reports(capsys.readouterr().out) == [(20, 5.0)]


def zero_params():
    return [nn.Parameter(torch.zeros_like(param)) for param in get_params()]


def test_train_and_predict_rnn_pytorch_learns_cycle(capsys):
    model = d2l.RNNModel(nn.GRU(5, 16), 5)
    d2l.train_and_predict_rnn_pytorch(
        *(model, 16, 5, "cpu", CORPUS, CHARS, IDS, 40, 5, 0.02, 0.01, 4, 20, 7, ["a", "cd"])
    )
    out = capsys.readouterr().out
    assert [epoch for epoch, _ in reports(out)] == [20, 40]
    assert 1 <= reports(out)[-1][1] < 1.2
    assert out.splitlines()[-2:] == [" - abcdeabc", " - cdeabcdea"]
