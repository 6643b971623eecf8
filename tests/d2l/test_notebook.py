"""A script of a d2l notebook in which only the import line is changed."""

import io
from contextlib import redirect_stdout

import pytest

SCRIPT = """
import torch
from torch import nn
from recurra import d2l

batch_size, num_steps, num_hiddens = 4, 12, 32
train_iter, vocab = d2l.load_data_time_machine(batch_size, num_steps, max_tokens=330)
device = torch.device("cpu")

def get_params(vocab_size, num_hiddens, device):
    def small(*shape):
        return torch.randn(*shape, device=device) * 0.01
    def gate():
        return [small(vocab_size, num_hiddens), small(num_hiddens, num_hiddens),
                torch.zeros(num_hiddens, device=device)]
    params = [*gate(), *gate(), *gate(), small(num_hiddens, vocab_size),
              torch.zeros(vocab_size, device=device)]
    for param in params:
        param.requires_grad_(True)
    return params

def init_state(batch_size, num_hiddens, device):
    return (torch.zeros((batch_size, num_hiddens), device=device),)

def gru(inputs, state, params):
    xz, hz, bz, xr, hr, br, xh, hh, bh, hq, bq = params
    H, = state
    outputs = []
    for X in inputs:
        Z = torch.sigmoid(X @ xz + H @ hz + bz)
        R = torch.sigmoid(X @ xr + H @ hr + br)
        candidate = torch.tanh(X @ xh + (R * H) @ hh + bh)
        H = Z * H + (1 - Z) * candidate
        outputs.append(H @ hq + bq)
    return torch.cat(outputs, dim=0), (H,)

net = d2l.RNNModelScratch(len(vocab), num_hiddens, device, get_params, init_state, gru)
d2l.train_ch8(net, train_iter, vocab, 4, 80, device)
scratch = d2l.predict_ch8("rabbit h", 18, net, vocab, device)

net = d2l.RNNModel(nn.LSTM(len(vocab), num_hiddens), len(vocab)).to(device)
d2l.train_ch8(net, train_iter, vocab, 4, 80, device)
concise = d2l.predict_ch8("rabbit h", 18, net, vocab, device)
"""


@pytest.mark.usefixtures("small_corpora")
def test_d2l_notebook_script_trains_both_models():
    names, out = {}, io.StringIO()
    with redirect_stdout(out):
        exec(SCRIPT, names)
    # As in d2l, lines are joined without a space.
    assert names["scratch"] == names["concise"] == "rabbit heard itso the kett"
    summaries = [line for line in out.getvalue().splitlines() if line.startswith("perplexity")]
    perplexities = [float(line.split()[1].rstrip(",")) for line in summaries]
    assert len(perplexities) == 2
    assert max(perplexities) <= 1.2
