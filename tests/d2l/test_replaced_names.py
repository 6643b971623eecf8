"""A name of `recurra.d2l` that is replaced has effect in the functions that use it, as in the book.

The functions of the book look up other functions in the module d2l when they are called.
"""

import pytest
import torch
from torch import nn

from recurra import d2l

IDS = {"a": 0, "b": 1, "c": 2}
CORPUS = [0, 1, 2] * 20


def get_params(*sizes_and_device):
    return [torch.zeros(3, 3, requires_grad=True)]


def init_state(batch_size, num_hiddens, device):
    return ()


def bigram(inputs, state, params):
    return torch.cat([X @ params[0] for X in inputs]), state


def bigram_v1(inputs, state, params):
    return [X @ params[0] for X in inputs], state


class Ones(d2l.DataModule):
    def train_dataloader(self):
        return [(torch.ones(2, 1), torch.ones(2, 1))]

    def val_dataloader(self):
        return None


def fit():
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    d2l.Trainer(max_epochs=1, num_gpus=1).fit(d2l.LinearRegression(lr=0.1), Ones())


def find_missing_gpu():
    d2l.try_gpu(1000)


def load_time_machine():
    d2l.TimeMachine(2, 5)


VOCAB = list("time travler")
BATCHES = [(torch.tensor([[0, 1]]), torch.tensor([[1, 2]]))]


def scratch_net(params):
    return d2l.RNNModelScratch(11, 0, "cpu", lambda *_: params, init_state, bigram)


def train(net, num_epochs=10):
    d2l.train_ch8(net, BATCHES, d2l.Vocab(VOCAB), lr=1, num_epochs=num_epochs, device="cpu")


def train_scratch():
    train(scratch_net([torch.zeros(11, 11, requires_grad=True)]))


def train_concise():
    train(d2l.RNNModel(nn.RNN(11, 4), 11))


def load_sequential():
    return next(iter(d2l.load_data_time_machine(2, 5)[0]))


def load_random():
    return next(iter(d2l.load_data_time_machine(2, 5, use_random_iter=True)[0]))


def evaluate():
    d2l.evaluate_loss(nn.Linear(1, 1), [(torch.ones(1, 1), torch.ones(1, 1))], nn.MSELoss())


def plot():
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    d2l.plot([1, 2], [3, 4])


def animate():
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    d2l.Animator().add(1, 2)


def train_v1(is_random_iter=False):
    d2l.train_and_predict_rnn(
        *(bigram_v1, get_params, init_state, 0, 3, "cpu", CORPUS, list("abc"), IDS),
        *(is_random_iter, 1, 5, 1.0, 1.0, 2, 1, 3, ["a"]),
    )


def train_v1_random():
    train_v1(is_random_iter=True)


def train_v1_pytorch():
    net = d2l.RNNModel(nn.RNN(3, 4), 3)
    d2l.train_and_predict_rnn_pytorch(
        *(net, 4, 3, "cpu", CORPUS, list("abc"), IDS, 1, 5, 0.1, 1.0, 2, 1, 3, ["a"])
    )


USES = [
    (train_scratch, ["Accumulator", "Animator", "Timer", "grad_clipping", "predict_ch8", "sgd",
                     "train_epoch_ch8"]),
    (train_concise, ["Accumulator", "Animator", "Timer", "grad_clipping", "predict_ch8",
                     "train_epoch_ch8"]),
    (load_sequential, ["SeqDataLoader", "Vocab", "count_corpus", "download",
                       "load_corpus_time_machine", "read_time_machine", "seq_data_iter_sequential",
                       "tokenize"]),
    (load_random, ["SeqDataLoader", "seq_data_iter_random"]),
    (fit, ["ProgressBoard", "num_gpus", "use_svg_display"]),
    (load_time_machine, ["Vocab", "download"]),
    (find_missing_gpu, ["cpu", "num_gpus"]),
    (evaluate, ["Accumulator"]),
    (plot, ["set_axes", "set_figsize", "use_svg_display"]),
    (animate, ["set_axes", "use_svg_display"]),
    (train_v1, ["data_iter_consecutive", "grad_clipping", "one_hot", "predict_rnn", "sgd",
                "to_onehot"]),
    (train_v1_random, ["data_iter_random"]),
    (train_v1_pytorch, ["data_iter_consecutive", "grad_clipping", "predict_rnn_pytorch"]),
]  # fmt: skip


@pytest.mark.usefixtures("small_corpora")
@pytest.mark.parametrize(
    ("use", "name"),
    [pytest.param(use, name, id=f"{use.__name__}-{name}") for use, names in USES for name in names],
)
def test_d2l_replaced_name_is_called(use, name, monkeypatch):
    original, calls = getattr(d2l, name), []

    def replacement(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(d2l, name, replacement)
    use()
    assert calls


def test_train_ch8_replaced_clipping_changes_update(monkeypatch):
    """The gradient is scaled to zero by the replacement, so the weights stay at zero."""
    received = []

    def clip_to_zero(net, theta):
        received.append(theta)
        for param in net.params:
            param.grad[:] = 0

    monkeypatch.setattr(d2l, "grad_clipping", clip_to_zero)
    params = [torch.zeros(11, 11, requires_grad=True)]
    train(scratch_net(params), num_epochs=3)
    assert received == [1, 1, 1]
    assert not params[0].any()
    monkeypatch.undo()
    train(scratch_net(params), num_epochs=3)
    assert params[0].any()


def test_train_and_predict_rnn_replaced_clipping_receives_arguments_of_v1(monkeypatch):
    received = []
    monkeypatch.setattr(d2l, "grad_clipping", lambda *args: received.append(args))
    train_v1()
    (params, theta, device) = received[0]
    assert [p.shape for p in params] == [(3, 3)]
    assert (theta, device) == (1.0, "cpu")


@pytest.mark.usefixtures("small_corpora")
def test_time_machine_uses_replaced_vocab(monkeypatch):
    class Reversed(d2l.SortedVocab):
        def __init__(self, tokens):
            super().__init__(tokens)
            self.idx_to_token.reverse()
            self.token_to_idx = {t: i for i, t in enumerate(self.idx_to_token)}

    ordinary = d2l.TimeMachine(2, 5)
    monkeypatch.setattr(d2l, "Vocab", Reversed)
    data = d2l.TimeMachine(2, 5)
    assert isinstance(data.vocab, Reversed)
    assert torch.equal(data.X, len(data.vocab) - 1 - ordinary.X)


def test_d2l_replaced_pyplot_is_used(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the plot extra is not installed")
    opened = []

    class Pyplot:
        def __getattr__(self, name):
            opened.append(name)
            return getattr(pyplot, name)

    monkeypatch.setattr(d2l, "plt", Pyplot(), raising=False)
    d2l.plot([1, 2])
    d2l.Animator()
    assert {"gca", "subplots"} <= set(opened)
