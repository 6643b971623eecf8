import math

import pytest
import torch
from torch import nn

from recurra import d2l
from recurra.errors import ConfigError, NonFiniteError, SourceError

V = 5


def bigram(forward=None):
    """A model that predicts from the last token alone: logits = one_hot(x) @ W, W zero at first."""

    def get_params(vocab_size, num_hiddens, device):
        return [torch.zeros(vocab_size, vocab_size, device=device, requires_grad=True)]

    def plain(inputs, state, params):
        return (inputs @ params[0]).reshape(-1, inputs.shape[-1]), state

    def init_state(batch_size, num_hiddens, device):
        return (torch.zeros(batch_size, num_hiddens, device=device),)

    return d2l.RNNModelScratch(V, 2, "cpu", get_params, init_state, forward or plain)


def scratch_sgd(net, lr):
    return lambda batch_size: d2l.sgd(net.params, lr, batch_size)


X, Y = torch.tensor([[0, 1, 2], [2, 3, 0]]), torch.tensor([[1, 2, 3], [3, 0, 1]])


def bigram_gradient():
    """The gradient of the mean loss at W = 0: for each pair (softmax - one_hot) / 6."""
    gradient = torch.zeros(V, V)
    for x, y in zip(X.flatten().tolist(), Y.flatten().tolist(), strict=True):
        gradient[x] += 1 / V / 6
        gradient[x, y] -= 1 / 6
    return gradient


def test_one_epoch_against_the_computation_by_hand():
    net = bigram()
    gradient = bigram_gradient()
    ppl, speed = d2l.train_epoch_ch8(
        net, [(X, Y)], nn.CrossEntropyLoss(), scratch_sgd(net, 0.5), "cpu", False
    )
    assert gradient.norm() < 1  # so that clipping does nothing here
    assert ppl == pytest.approx(V)  # a model that knows nothing: perplexity = vocabulary
    assert speed > 0
    torch.testing.assert_close(net.params[0].detach(), -0.5 * gradient)

    ppl, _ = d2l.train_epoch_ch8(
        net, [(X, Y)], nn.CrossEntropyLoss(), scratch_sgd(net, 0.0), "cpu", False
    )
    log_p = torch.log_softmax(-0.5 * gradient, dim=1)
    assert ppl == pytest.approx(math.exp(-log_p[X.flatten(), Y.flatten()].mean()), rel=1e-5)


def test_gradients_are_clipped_to_norm_1():
    net = bigram()

    def hundredfold(logits, labels):
        return 100 * nn.functional.cross_entropy(logits, labels)

    d2l.train_epoch_ch8(net, [(X, Y)], hundredfold, scratch_sgd(net, 1.0), "cpu", False)
    gradient = bigram_gradient()
    torch.testing.assert_close(net.params[0].detach(), -gradient / gradient.norm())


def test_losses_per_token_train_like_their_mean():
    nets = [bigram(), bigram()]
    for net, reduction in zip(nets, ["mean", "none"], strict=True):
        d2l.train_epoch_ch8(
            net,
            [(X, Y)],
            nn.CrossEntropyLoss(reduction=reduction),
            scratch_sgd(net, 0.7),
            "cpu",
            False,
        )
    torch.testing.assert_close(nets[0].params[0], nets[1].params[0])
    assert nets[0].params[0].any()


def test_an_updater_that_does_not_clear_gradients_does_no_harm():
    nets = [bigram(), bigram()]

    def forgetful(batch_size):
        with torch.no_grad():
            nets[1].params[0] -= 0.5 * nets[1].params[0].grad

    for net, updater in zip(nets, [scratch_sgd(nets[0], 0.5), forgetful], strict=True):
        for _ in range(3):
            d2l.train_epoch_ch8(net, [(X, Y)], nn.CrossEntropyLoss(), updater, "cpu", True)
    torch.testing.assert_close(nets[0].params[0], nets[1].params[0])


def test_a_module_with_torchs_sgd_trains_like_the_scratch_model():
    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(V, V))

        def forward(self, inputs, state):
            return self.weight[inputs.T.reshape(-1)], state

        def begin_state(self, device, batch_size=1):
            return torch.zeros(1, batch_size, 2, device=device)

    module, scratch = Bigram(), bigram()
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    for net, updater in ((module, optimizer), (scratch, scratch_sgd(scratch, 0.5))):
        for _ in range(3):
            ppl, _ = d2l.train_epoch_ch8(
                net, [(X, Y)] * 2, nn.CrossEntropyLoss(), updater, "cpu", False
            )
    torch.testing.assert_close(module.weight, scratch.params[0])
    assert ppl < V


@pytest.mark.parametrize("use_random_iter", [False, True])
def test_the_state_is_carried_without_its_history_or_started_anew(use_random_iter):
    seen = []

    def forward(inputs, state, params):
        seen.append(state[0])
        # The new state depends on the weights, so a state that was not cut off would show it.
        new = state[0] + 1 + params[0].sum()
        return (inputs @ params[0]).reshape(-1, V), (new,)

    net = bigram(forward)
    d2l.train_epoch_ch8(
        net, [(X, Y)] * 3, nn.CrossEntropyLoss(), scratch_sgd(net, 0.0), "cpu", use_random_iter
    )
    expected = [0.0, 0.0, 0.0] if use_random_iter else [0.0, 1.0, 2.0]
    assert [float(state.mean()) for state in seen] == expected
    assert not any(state.requires_grad for state in seen)


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_tensor_and_tuple_states_both_train(layer):
    net = d2l.RNNModel(layer(V, 8), V)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    loss = nn.CrossEntropyLoss()
    first, *_, last = [
        d2l.train_epoch_ch8(net, [(X, Y)] * 3, loss, optimizer, "cpu", False)[0] for _ in range(30)
    ]
    assert first == pytest.approx(V, rel=0.3)
    # X and Y hold one cycle 0 1 2 3 0: everything can be known but the first step.
    assert last < 1.2


def test_a_loss_too_large_for_exp_is_an_infinite_perplexity():
    net = bigram()
    ppl, _ = d2l.train_epoch_ch8(
        net, [(X, Y)], lambda logits, _: 0 * logits.sum() + 1e4, scratch_sgd(net, 1), "cpu", False
    )
    assert ppl == math.inf


def test_a_loss_that_is_no_number_stops_the_training():
    net = bigram()
    with pytest.raises(NonFiniteError):
        d2l.train_epoch_ch8(
            net, [(X, Y)], lambda logits, _: logits.sum() * math.nan, lambda _: None, "cpu", False
        )
    assert not net.params[0].any()


def test_no_batches_is_explained():
    net = bigram()
    with pytest.raises(SourceError, match="no batch"):
        d2l.train_epoch_ch8(net, [], nn.CrossEntropyLoss(), scratch_sgd(net, 1), "cpu", False)


class Letters:
    idx_to_token = ("<unk>", *"abcd")

    def __getitem__(self, token):
        return self.idx_to_token.index(token) if token in self.idx_to_token else 0


def test_prediction_warms_up_and_then_takes_the_likeliest():
    net = d2l.RNNModel(nn.GRU(V, 16), V)
    vocab, ids = Letters(), [1, 3, 0, 2]
    _, state = net(torch.tensor([ids[:-1]]))
    for _ in range(12):
        logits, state = net(torch.tensor([ids[-1:]]), state)
        ids.append(int(logits.argmax()))
    expected = "".join(vocab.idx_to_token[i] for i in ids)
    assert d2l.predict_ch8("ac?b", 12, net, vocab, "cpu") == expected
    assert d2l.predict_ch8("ac?b", 0, net, vocab, "cpu") == "ac<unk>b"


def test_prediction_reads_each_token_once_and_tracks_no_gradient():
    read, tracked = [], []

    def forward(inputs, state, params):
        read.append(int(inputs.argmax()))
        tracked.append((inputs @ params[0]).requires_grad)
        return torch.roll(inputs.reshape(1, V), 1, dims=1), state  # the next letter of the row

    assert d2l.predict_ch8("ca", 4, bigram(forward), Letters(), "cpu") == "cabcd<unk>"
    assert read == [3, 1, 2, 3, 4]
    assert not any(tracked)


def test_an_empty_prefix_is_explained():
    with pytest.raises(ConfigError, match="prefix is empty"):
        d2l.predict_ch8("", 5, bigram(), Letters(), "cpu")


@pytest.mark.usefixtures("stand_in")
def test_train_ch8_reports_every_ten_epochs_and_at_the_end(capsys):
    train_iter, vocab = d2l.load_data_time_machine(4, 10, max_tokens=200)
    net = d2l.RNNModel(nn.LSTM(len(vocab), 32), len(vocab))
    d2l.train_ch8(net, train_iter, vocab, 1, 20, "cpu")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("perplexity ")
    assert lines[2].endswith(" tokens/sec on cpu")
    assert lines[1] == lines[3] == d2l.predict_ch8("time traveller", 50, net, vocab, "cpu")
    assert lines[4] == d2l.predict_ch8("traveller", 50, net, vocab, "cpu")
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 10", "epoch 20"]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("use_random_iter", [False, True])
def test_train_ch8_learns_with_the_scratch_model(use_random_iter):
    train_iter, vocab = d2l.load_data_time_machine(4, 10, use_random_iter)
    net = d2l.RNNModelScratch(
        len(vocab),
        0,
        "cpu",
        lambda v, h, device: [torch.zeros(v, v, requires_grad=True)],
        lambda batch_size, h, device: (torch.zeros(batch_size),),
        lambda inputs, state, params: ((inputs @ params[0]).flatten(0, 1), state),
    )
    d2l.train_ch8(net, train_iter, vocab, 5, 10, "cpu", use_random_iter)
    # A bigram model of "the": after t comes h, after h comes e, and words follow spaces.
    rows = net.params[0].softmax(dim=1)
    assert vocab.to_tokens(rows[vocab["k"]].argmax()) == "e"
    assert rows[vocab["k"], vocab["e"]] > 0.4


def test_train_ch8_needs_an_epoch():
    with pytest.raises(ConfigError, match="num_epochs"):
        d2l.train_ch8(bigram(), [(X, Y)], Letters(), 1, 0, "cpu")


def test_evaluate_loss_is_the_mean_over_all_examples():
    data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])), (torch.ones(1, 1),) * 2]
    loss = nn.MSELoss(reduction="none")
    assert d2l.evaluate_loss(lambda x: 2 * x, data, loss) == pytest.approx((1 + 0 + 1) / 3)
