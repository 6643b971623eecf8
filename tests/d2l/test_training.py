"""`train_epoch_ch8`, `train_ch8`, `predict_ch8` and `evaluate_loss`."""

import math

import pytest
import torch
from torch import nn

from recurra import d2l
from recurra.errors import ConfigError, NonFiniteError, SourceError

V = 5


def bigram(forward=None):
    """Return a model that reads only the last token: logits = one_hot(x) @ W, initially W = 0."""

    def get_params(vocab_size, num_hiddens, device):
        return [torch.zeros(vocab_size, vocab_size, device=device, requires_grad=True)]

    def default_forward(inputs, state, params):
        return (inputs @ params[0]).reshape(-1, inputs.shape[-1]), state

    def init_state(batch_size, num_hiddens, device):
        return (torch.zeros(batch_size, num_hiddens, device=device),)

    return d2l.RNNModelScratch(V, 2, "cpu", get_params, init_state, forward or default_forward)


def scratch_sgd(net, lr):
    return lambda batch_size: d2l.sgd(net.params, lr, batch_size)


X, Y = torch.tensor([[0, 1, 2], [2, 3, 0]]), torch.tensor([[1, 2, 3], [3, 0, 1]])


def bigram_gradient():
    """Return the gradient of the mean loss at W = 0: the sum of (softmax - one_hot) / 6."""
    gradient = torch.zeros(V, V)
    for x, y in zip(X.flatten().tolist(), Y.flatten().tolist(), strict=True):
        gradient[x] += 1 / V / 6
        gradient[x, y] -= 1 / 6
    return gradient


def test_train_epoch_ch8_equals_explicit_gradient_step():
    net = bigram()
    gradient = bigram_gradient()
    ppl, speed = d2l.train_epoch_ch8(
        net, [(X, Y)], nn.CrossEntropyLoss(), scratch_sgd(net, 0.5), "cpu", False
    )
    assert gradient.norm() < 1  # clipping has no effect
    assert ppl == pytest.approx(V)  # equal logits: perplexity is the vocabulary size
    assert speed > 0
    torch.testing.assert_close(net.params[0].detach(), -0.5 * gradient)

    ppl, _ = d2l.train_epoch_ch8(
        net, [(X, Y)], nn.CrossEntropyLoss(), scratch_sgd(net, 0.0), "cpu", False
    )
    log_p = torch.log_softmax(-0.5 * gradient, dim=1)
    assert ppl == pytest.approx(math.exp(-log_p[X.flatten(), Y.flatten()].mean()), rel=1e-5)


def test_train_epoch_ch8_clips_gradients_to_norm_1():
    net = bigram()

    def scaled_loss(logits, labels):
        return 100 * nn.functional.cross_entropy(logits, labels)

    d2l.train_epoch_ch8(net, [(X, Y)], scaled_loss, scratch_sgd(net, 1.0), "cpu", False)
    gradient = bigram_gradient()
    torch.testing.assert_close(net.params[0].detach(), -gradient / gradient.norm())


def test_train_epoch_ch8_reduction_none_equals_mean():
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


def test_train_epoch_ch8_clears_gradients_for_custom_updater():
    nets = [bigram(), bigram()]

    def updater_without_zero_grad(batch_size):
        with torch.no_grad():
            nets[1].params[0] -= 0.5 * nets[1].params[0].grad

    for net, updater in zip(
        nets, [scratch_sgd(nets[0], 0.5), updater_without_zero_grad], strict=True
    ):
        for _ in range(3):
            d2l.train_epoch_ch8(net, [(X, Y)], nn.CrossEntropyLoss(), updater, "cpu", True)
    torch.testing.assert_close(nets[0].params[0], nets[1].params[0])


def test_train_epoch_ch8_torch_module_equals_scratch_model():
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
def test_train_epoch_ch8_state_is_detached_or_reset(use_random_iter):
    states = []

    def forward(inputs, state, params):
        states.append(state[0])
        # The new state depends on the weights, so it requires a gradient unless it is detached.
        new_state = state[0] + 1 + params[0].sum()
        return (inputs @ params[0]).reshape(-1, V), (new_state,)

    net = bigram(forward)
    d2l.train_epoch_ch8(
        net, [(X, Y)] * 3, nn.CrossEntropyLoss(), scratch_sgd(net, 0.0), "cpu", use_random_iter
    )
    expected = [0.0, 0.0, 0.0] if use_random_iter else [0.0, 1.0, 2.0]
    assert [float(state.mean()) for state in states] == expected
    assert not any(state.requires_grad for state in states)


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_train_epoch_ch8_accepts_tensor_and_tuple_states(layer):
    net = d2l.RNNModel(layer(V, 8), V)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    loss = nn.CrossEntropyLoss()
    first, *_, last = [
        d2l.train_epoch_ch8(net, [(X, Y)] * 3, loss, optimizer, "cpu", False)[0] for _ in range(30)
    ]
    assert first == pytest.approx(V, rel=0.3)
    # X and Y follow the cycle 0 1 2 3 0, so each target follows from its input.
    assert last < 1.2


def test_train_epoch_ch8_huge_loss_gives_infinite_perplexity():
    net = bigram()
    ppl, _ = d2l.train_epoch_ch8(
        net, [(X, Y)], lambda logits, _: 0 * logits.sum() + 1e4, scratch_sgd(net, 1), "cpu", False
    )
    assert ppl == math.inf


def test_train_epoch_ch8_nan_loss_raises():
    net = bigram()
    with pytest.raises(NonFiniteError):
        d2l.train_epoch_ch8(
            net, [(X, Y)], lambda logits, _: logits.sum() * math.nan, lambda _: None, "cpu", False
        )
    assert not net.params[0].any()


def test_train_epoch_ch8_no_batch_raises():
    net = bigram()
    with pytest.raises(SourceError, match="no batch"):
        d2l.train_epoch_ch8(net, [], nn.CrossEntropyLoss(), scratch_sgd(net, 1), "cpu", False)


class LetterVocab:
    idx_to_token = ("<unk>", *"abcd")

    def __getitem__(self, token):
        return self.idx_to_token.index(token) if token in self.idx_to_token else 0


def test_predict_ch8_reads_prefix_then_decodes_greedily():
    net = d2l.RNNModel(nn.GRU(V, 16), V)
    vocab, ids = LetterVocab(), [1, 3, 0, 2]
    _, state = net(torch.tensor([ids[:-1]]))
    for _ in range(12):
        logits, state = net(torch.tensor([ids[-1:]]), state)
        ids.append(int(logits.argmax()))
    expected = "".join(vocab.idx_to_token[i] for i in ids)
    assert d2l.predict_ch8("ac?b", 12, net, vocab, "cpu") == expected
    assert d2l.predict_ch8("ac?b", 0, net, vocab, "cpu") == "ac<unk>b"


def test_predict_ch8_reads_tokens_once_without_gradient():
    read_ids, requires_grad = [], []

    def forward(inputs, state, params):
        read_ids.append(int(inputs.argmax()))
        requires_grad.append((inputs @ params[0]).requires_grad)
        return torch.roll(inputs.reshape(1, V), 1, dims=1), state  # predicts the next id

    assert d2l.predict_ch8("ca", 4, bigram(forward), LetterVocab(), "cpu") == "cabcd<unk>"
    assert read_ids == [3, 1, 2, 3, 4]
    assert not any(requires_grad)


def test_predict_ch8_empty_prefix_raises():
    with pytest.raises(ConfigError, match="prefix"):
        d2l.predict_ch8("", 5, bigram(), LetterVocab(), "cpu")


@pytest.mark.usefixtures("small_corpora")
def test_train_ch8_prints_every_ten_epochs_and_result(capsys):
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


@pytest.mark.usefixtures("small_corpora")
@pytest.mark.parametrize("use_random_iter", [False, True])
def test_train_ch8_trains_scratch_model(use_random_iter):
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
    # In the story, "k" is followed by "e" more often than by any other character.
    rows = net.params[0].softmax(dim=1)
    assert vocab.to_tokens(rows[vocab["k"]].argmax()) == "e"
    assert rows[vocab["k"], vocab["e"]] > 0.4


def test_train_ch8_zero_epochs_raises():
    with pytest.raises(ConfigError, match="num_epochs"):
        d2l.train_ch8(bigram(), [(X, Y)], LetterVocab(), 1, 0, "cpu")


def test_evaluate_loss_is_mean_over_all_examples():
    data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])), (torch.ones(1, 1),) * 2]
    loss = nn.MSELoss(reduction="none")
    assert d2l.evaluate_loss(lambda x: 2 * x, data, loss) == pytest.approx((1 + 0 + 1) / 3)
