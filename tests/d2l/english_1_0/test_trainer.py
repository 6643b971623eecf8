"""`add_to_class`, `HyperParameters`, `Module`, `DataModule` and `Trainer` of `recurra.d2l`."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recurra import d2l
from recurra.errors import ConfigError, NonFiniteError, SourceError


class Points(d2l.DataModule):
    """y = 2 x for x = 1, ..., 8; the last two are for validation."""

    def __init__(self, batch_size=2, num_train=6):
        super().__init__()
        self.save_hyperparameters()
        self.X = torch.arange(1.0, 9.0)[:, None]

    def get_dataloader(self, train):
        indices = slice(0, self.num_train) if train else slice(6, 8)
        return self.get_tensorloader([self.X, 2 * self.X], train, indices)


class Scale(d2l.Module):
    """y = w x, with the squared error."""

    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.weight

    def loss(self, y_hat, y):
        return ((y_hat - y) ** 2).mean()


def test_add_to_class_adds_method_to_existing_objects():
    class Empty:
        pass

    thing = Empty()

    @d2l.add_to_class(Empty)
    def double(self, x):
        return 2 * x

    assert thing.double(3) == 6
    assert double(None, 4) == 8


def test_save_hyperparameters_stores_arguments_except_ignored_and_private():
    class Thing(d2l.HyperParameters):
        def __init__(self, a, b=2, *rest, c, _d=4, **more):
            local = a + b
            self.save_hyperparameters(ignore=["b"])
            assert local == self.local

    thing = Thing(1, 2, 3, c=4, e=5)
    assert thing.hparams == {"a": 1, "rest": (3,), "c": 4, "more": {"e": 5}, "local": 3}
    assert (thing.a, thing.c) == (1, 4)
    assert not hasattr(thing, "b")
    assert not hasattr(thing, "_d")


def test_module_keeps_hyperparameters_of_subclass_and_registers_layers():
    class Wrapper(d2l.Module):
        def __init__(self, net, lr=0.5):
            super().__init__()
            self.save_hyperparameters()

    layer = nn.Linear(2, 3)
    model = Wrapper(layer)
    assert set(model.hparams) == {"net", "lr"}
    assert list(dict(model.named_parameters())) == ["net.weight", "net.bias"]
    x = torch.randn(4, 2)
    assert torch.equal(model(x), layer(x))
    (group,) = model.configure_optimizers().param_groups
    assert (group["lr"], len(group["params"])) == (0.5, 2)
    model.apply_init([x], init=lambda module: nn.init.ones_(module.weight))
    assert layer.weight.eq(1).all()


def test_module_without_definitions_raises():
    model = d2l.Module()
    with pytest.raises(NotImplementedError, match="loss"):
        model.loss(1, 2)
    with pytest.raises(NotImplementedError, match="attribute net"):
        model(torch.ones(1))
    with pytest.raises(ConfigError, match=r"Trainer\.fit"):
        model.plot("loss", 1.0, train=True)
    with pytest.raises(NotImplementedError, match="get_dataloader"):
        d2l.DataModule().train_dataloader()


def test_trainer_fit_equals_explicit_gradient_steps():
    model, data = Scale(lr=0.01), Points()
    torch.manual_seed(5)
    d2l.Trainer(max_epochs=3).fit(model, data)
    torch.manual_seed(5)
    weight, losses, val_losses = 0.0, [], []
    for _ in range(3):
        dataset = TensorDataset(data.X[:6], 2 * data.X[:6])
        for x, y in DataLoader(dataset, batch_size=2, shuffle=True):
            losses.append(float(((weight * x - y) ** 2).mean()))
            weight -= 0.01 * float((2 * (weight * x - y) * x).mean())
        # Validation also draws a seed.
        list(DataLoader(TensorDataset(data.X[6:]), batch_size=2))
        val_losses.append(float(((weight - 2) ** 2 * data.X[6:] ** 2).mean()))
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)
    # Two points per epoch of three batches: each batch is a point.
    assert [p.y for p in model.board.data["train_loss"]] == pytest.approx(losses, rel=1e-4)
    assert [p.x for p in model.board.data["train_loss"]] == pytest.approx([i / 3 for i in range(9)])
    assert model.board.data["val_loss"] == [
        (epoch + 1, pytest.approx(value, rel=1e-4)) for epoch, value in enumerate(val_losses)
    ]
    assert model.board.xlim == [0, 3]


def test_trainer_counts_epochs_and_batches_and_switches_mode():
    modes = []

    class Watching(Scale):
        def training_step(self, batch):
            modes.append(("train", self.training, torch.is_grad_enabled()))
            return super().training_step(batch)

        def validation_step(self, batch):
            modes.append(("val", self.training, torch.is_grad_enabled()))
            super().validation_step(batch)

    model, trainer = Watching(lr=0.0), d2l.Trainer(max_epochs=2)
    trainer.fit(model, Points())
    assert modes == 2 * [*3 * [("train", True, True)], ("val", False, False)]
    assert (trainer.epoch, trainer.train_batch_idx, trainer.val_batch_idx) == (1, 6, 2)
    assert model.trainer is trainer


def test_trainer_without_validation_data_trains():
    class TrainingOnly(Points):
        def val_dataloader(self):
            return None

    model = Scale(lr=0.01)
    d2l.Trainer(max_epochs=20).fit(model, TrainingOnly())
    assert model.weight.item() == pytest.approx(2, rel=0.01)
    assert set(model.board.data) == {"train_loss"}


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_trainer_clips_gradients_to_norm(limit):
    model = Scale(lr=1.0)
    d2l.Trainer(max_epochs=1, gradient_clip_val=limit).fit(model, Points(batch_size=6))
    gradient = float((-4 * torch.arange(1.0, 7.0) ** 2).mean())
    assert model.weight.item() == pytest.approx(min(limit, -gradient))


def test_trainer_nan_gradient_raises_if_clipped():
    model = Scale(lr=1.0)
    model.loss = lambda y_hat, y: y_hat.sum() * torch.nan
    with pytest.raises(NonFiniteError):
        d2l.Trainer(max_epochs=1, gradient_clip_val=1).fit(model, Points())
    assert model.weight.item() == 0


def test_trainer_no_training_batch_raises():
    class Empty(Points):
        def train_dataloader(self):
            return []

    with pytest.raises(SourceError, match="no batch"):
        d2l.Trainer(max_epochs=1).fit(Scale(lr=1.0), Empty())


def test_trainer_method_replaced_by_add_to_class_is_used(monkeypatch):
    received = []
    # Registers the original, so that the method is restored after the test.
    monkeypatch.setattr(d2l.Trainer, "clip_gradients", d2l.Trainer.clip_gradients)

    @d2l.add_to_class(d2l.Trainer)
    def clip_gradients(self, grad_clip_val, model):
        received.append((grad_clip_val, model))

    model = Scale(lr=0.0)
    d2l.Trainer(max_epochs=1, gradient_clip_val=3).fit(model, Points(batch_size=6))
    assert received == [(3, model)]


def test_trainer_optimizer_that_writes_to_parameters_works():
    class HandWritten:
        def __init__(self, param):
            self.param = param

        def zero_grad(self):
            self.param.grad = None

        def step(self):
            self.param -= 0.01 * self.param.grad

    class Model(Scale):
        def configure_optimizers(self):
            return HandWritten(self.weight)

    model = Model(lr=None)
    d2l.Trainer(max_epochs=20).fit(model, Points())
    assert model.weight.item() == pytest.approx(2, rel=0.01)


def test_trainer_uses_no_gpu_unless_asked(monkeypatch):
    monkeypatch.setattr(d2l, "num_gpus", lambda: 2)
    assert d2l.Trainer(max_epochs=1).gpus == []
    assert d2l.Trainer(max_epochs=1, num_gpus=1).gpus == [torch.device("cuda:0")]


@pytest.mark.parametrize("train", [False, True])
def test_get_tensorloader_gives_batches_of_plain_loader(train):
    tensors = torch.arange(40).reshape(20, 2), torch.arange(20)
    data = d2l.DataModule()
    data.batch_size = 6
    torch.manual_seed(7)
    batches = [list(data.get_tensorloader(tensors, train, slice(1, 18))) for _ in range(2)]
    torch.manual_seed(7)
    dataset = TensorDataset(*(tensor[1:18] for tensor in tensors))
    expected = [list(DataLoader(dataset, batch_size=6, shuffle=train)) for _ in range(2)]
    assert len(data.get_tensorloader(tensors, train, slice(1, 18))) == len(expected[0]) == 3
    for epoch, expected_epoch in zip(batches, expected, strict=True):
        for batch, expected_batch in zip(epoch, expected_epoch, strict=True):
            assert type(batch) is type(expected_batch)
            for got, want in zip(batch, expected_batch, strict=True):
                assert torch.equal(got, want)


def test_linear_regression_learns_line():
    torch.manual_seed(0)
    model = d2l.LinearRegression(lr=0.02)
    d2l.Trainer(max_epochs=100).fit(model, Points(batch_size=6))
    weight, bias = model.get_w_b()
    assert weight.item() == pytest.approx(2, abs=0.1)
    assert bias.item() == pytest.approx(0, abs=0.4)
    assert {"train_loss", "val_loss"} == set(model.board.data)


def test_classifier_loss_and_accuracy_flatten_leading_dimensions():
    model, logits = d2l.Classifier(), torch.randn(2, 3, 5)
    labels = logits.argmax(dim=2).clone()
    labels[0, 0] = (labels[0, 0] + 1) % 5
    assert model.accuracy(logits, labels).item() == pytest.approx(5 / 6)
    assert model.accuracy(logits, labels, averaged=False).tolist() == [0, 1, 1, 1, 1, 1]
    log_p = logits.log_softmax(dim=2).gather(2, labels[..., None]).flatten()
    torch.testing.assert_close(model.loss(logits, labels, averaged=False), -log_p)
    torch.testing.assert_close(model.loss(logits, labels), -log_p.mean())
