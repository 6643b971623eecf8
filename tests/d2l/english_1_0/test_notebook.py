"""A script in the style of a notebook of edition 1.0, with its own classes and methods."""

import io
import math
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn

from recurra import d2l

SCRIPT = """
import torch
from torch import nn
from recurra import d2l

class Story(d2l.TimeMachine):
    def _preprocess(self, text):
        return " ".join(text.lower().split())

class GatedScratch(d2l.Module):
    def __init__(self, num_inputs, num_hiddens, sigma=0.01):
        super().__init__()
        self.save_hyperparameters()
        init_weight = lambda *shape: nn.Parameter(d2l.randn(*shape) * sigma)
        triple = lambda: (init_weight(num_inputs, num_hiddens),
                          init_weight(num_hiddens, num_hiddens),
                          nn.Parameter(d2l.zeros(num_hiddens)))
        self.W_xu, self.W_hu, self.b_u = triple()
        self.W_xn, self.W_hn, self.b_n = triple()

@d2l.add_to_class(GatedScratch)
def forward(self, inputs, state=None):
    state = d2l.zeros((inputs.shape[1], self.num_hiddens)) if state is None else state
    outputs = []
    for X in inputs:
        U = d2l.sigmoid(d2l.matmul(X, self.W_xu) + d2l.matmul(state, self.W_hu) + self.b_u)
        N = d2l.tanh(d2l.matmul(X, self.W_xn) + d2l.matmul(state, self.W_hn) + self.b_n)
        state = U * state + (1 - U) * N
        outputs.append(state)
    return outputs, state

class BothWays(d2l.RNN):
    def __init__(self, num_inputs, num_hiddens):
        d2l.Module.__init__(self)
        self.save_hyperparameters()
        self.rnn = nn.GRU(num_inputs, num_hiddens, bidirectional=True)
        self.num_hiddens *= 2

class AdamLM(d2l.RNNLM):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

data = Story(batch_size=64, num_steps=12, num_train=1000, num_val=500)
V = len(data.vocab)

scratch = d2l.RNNLMScratch(GatedScratch(V, 32, sigma=0.1), vocab_size=V, lr=4)
trainer = d2l.Trainer(max_epochs=15, gradient_clip_val=1, num_gpus=1)
trainer.fit(scratch, data)
print(scratch.predict("rabbit h", 11, data.vocab))

concise = AdamLM(d2l.LSTM(num_inputs=V, num_hiddens=32), vocab_size=V, lr=0.02)
untrained = concise.predict("rabbit h", 11, data.vocab)
trainer = d2l.Trainer(max_epochs=12, gradient_clip_val=1, num_gpus=1)
trainer.fit(concise, data)
print(concise.predict("rabbit h", 11, data.vocab, d2l.try_gpu()))

both = BothWays(V, 8)
outputs, state = both(d2l.ones((5, 2, V)))
d2l.check_shape(outputs, (5, 2, 16))
lm = d2l.RNNLM(both, V, lr=1)
d2l.check_shape(lm(d2l.ones((2, 5), dtype=d2l.int64)), (2, 5, V))
"""


@pytest.mark.usefixtures("small_corpora")
def test_d2l_script_of_edition_1_0_trains_own_and_given_layers(capsys):
    names, out = {}, io.StringIO()
    with redirect_stdout(out):
        exec(SCRIPT, names)
    assert out.getvalue().splitlines() == 2 * ["rabbit heard it. so"]
    for name in ("scratch", "concise"):
        curves = names[name].board.data
        first, *_, last = [p.y for p in curves["val_ppl"]]
        assert first > 2 * last
        # After the training, the story of 115 characters is known.
        assert 1 <= last < 1.3
        assert curves["train_ppl"][-1].y < 1.3
    assert "epoch 15: train_ppl" in capsys.readouterr().err


@pytest.mark.usefixtures("small_corpora")
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_trainer_fit_with_recurra_layer_equals_torch_layer(name):
    class TorchLayer(d2l.RNN):
        def __init__(self, num_inputs, num_hiddens):
            d2l.Module.__init__(self)
            self.save_hyperparameters()
            self.rnn = getattr(nn, name)(num_inputs, num_hiddens)

    data = d2l.TimeMachine(64, 12, num_train=500, num_val=200)
    size = len(data.vocab)

    def make(layer_class):
        model = d2l.RNNLM(layer_class(size, 16), size, lr=2)
        model(torch.zeros(1, 1, dtype=torch.int64))
        return model

    model, reference = make(getattr(d2l, name)), make(TorchLayer)
    reference.load_state_dict(model.state_dict())
    curves = []
    for trained in (model, reference):
        torch.manual_seed(4)
        d2l.Trainer(max_epochs=2, gradient_clip_val=1).fit(trained, data)
        curves.append([p.y for p in trained.board.data["val_ppl"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0][1] < curves[0][0]


@pytest.mark.slow
@pytest.mark.usefixtures("time_machine")
@pytest.mark.parametrize(
    ("make", "reached"),
    [
        (lambda size: d2l.RNNLMScratch(d2l.RNNScratch(size, 32), size, lr=1), 11),
        (lambda size: d2l.RNNLM(d2l.RNN(size, 32), size, lr=1), 11),
        (lambda size: d2l.RNNLM(d2l.GRU(size, 32), size, lr=4), 10),
        (lambda size: d2l.RNNLM(d2l.LSTM(size, 32), size, lr=4), 12),
    ],
    ids=["rnn-scratch", "rnn", "gru", "lstm"],
)
def test_language_model_of_real_book_reaches_perplexity(make, reached):
    """The settings of the book with 20 epochs instead of 50 or 100."""
    torch.manual_seed(1)
    data = d2l.TimeMachine(batch_size=1024, num_steps=32)
    model = make(len(data.vocab))
    d2l.Trainer(max_epochs=20, gradient_clip_val=1).fit(model, data)
    assert model.board.data["val_ppl"][-1].y < reached
    assert math.isfinite(model.board.data["train_ppl"][-1].y)


def test_progress_board_of_trained_model_is_saved_by_savefig(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot", reason="the plot extra is not installed")

    class Ones(d2l.DataModule):
        def train_dataloader(self):
            return [(torch.ones(2, 1), torch.ones(2, 1))]

        def val_dataloader(self):
            return self.train_dataloader()

    model = d2l.LinearRegression(lr=0.1)
    d2l.Trainer(max_epochs=5).fit(model, Ones())
    assert plt.gcf() is model.board.fig
    d2l.plt.savefig(tmp_path / "loss.svg")
    text = (tmp_path / "loss.svg").read_text()
    assert "stroke: #1f77b4" in text
    assert "stroke: #ff7f0e" in text
