"""`Module`, the base class of models, and two subclasses: `Classifier` and `LinearRegression`.

See sections 3.2 (Module), 3.5 (linear regression) and 4.3 (classification).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra import d2l
from recurra.d2l.english_1_0.hyperparameters import HyperParameters
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.d2l.english_1_0.board import ProgressBoard
    from recurra.d2l.english_1_0.trainer import Trainer

Batch = Sequence[Tensor]


class Module(nn.Module, HyperParameters):
    """Base class of models: a torch module with its loss, its optimizer and a `ProgressBoard`.

    A subclass defines `forward` or the attribute `net`, `loss`, and the attribute `lr` or
    `configure_optimizers`. A batch is a sequence of the inputs, then the targets.

    Args:
        plot_train_per_epoch: number of points of the training curve in an epoch.
        plot_valid_per_epoch: number of points of the validation curve in an epoch.

    Attributes:
        board: the `ProgressBoard` of the model.
        trainer: the `Trainer`, after `Trainer.fit` has been called.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> class Scale(d2l.Module):
        ...     def __init__(self, lr):
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...         self.net = torch.nn.Linear(1, 1, bias=False)
        ...     def loss(self, y_hat, y):
        ...         return ((y_hat - y) ** 2).mean()
        >>> model = Scale(lr=0.1)
        >>> model.configure_optimizers().param_groups[0]["lr"]
        0.1
    """

    plot_train_per_epoch: int
    plot_valid_per_epoch: int
    lr: float
    board: ProgressBoard
    net: Any
    trainer: Trainer

    def __init__(self, plot_train_per_epoch: int = 2, plot_valid_per_epoch: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.board = d2l.ProgressBoard()

    def loss(self, y_hat: Any, y: Any) -> Tensor:
        """Return the loss of a batch, a scalar.

        Raises:
            NotImplementedError: always; subclasses define the method, as in the book.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define loss(y_hat, y)")

    def forward(self, X: Any) -> Any:  # noqa: N803
        """Return the output of `net`, unless a subclass defines another forward method.

        Raises:
            NotImplementedError: the subclass defines neither of the two.
        """
        if not hasattr(self, "net"):
            raise NotImplementedError(
                f"{type(self).__name__} defines neither forward nor the attribute net"
            )
        return self.net(X)

    def plot(self, key: str, value: Tensor | float, train: bool) -> None:
        """Add a value to the curve "train_" + key or "val_" + key of the board.

        The x-coordinate is the epoch. The values of an epoch are averaged to
        `plot_train_per_epoch` or `plot_valid_per_epoch` points.

        Raises:
            ConfigError: no `Trainer` trains the model.
        """
        if not hasattr(self, "trainer"):
            raise ConfigError("Module.plot requires a trainer; Trainer.fit sets it")
        trainer = self.trainer
        if train:
            x = trainer.train_batch_idx / trainer.num_train_batches
            every_n = trainer.num_train_batches / self.plot_train_per_epoch
        else:
            x = trainer.epoch + 1
            every_n = trainer.num_val_batches / self.plot_valid_per_epoch
        self.board.xlabel = "epoch"
        number = float(value.detach() if isinstance(value, Tensor) else value)
        self.board.draw(x, number, ("train_" if train else "val_") + key, max(int(every_n), 1))

    def training_step(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, and plot it as "loss"."""
        loss = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("loss", loss, train=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Plot the loss of a batch as "loss"."""
        self.plot("loss", self.loss(self(*batch[:-1]), batch[-1]), train=False)

    def configure_optimizers(self) -> Any:
        """Return the optimizer: SGD with the learning rate `lr`, unless a subclass overrides it."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def apply_init(
        self, inputs: Sequence[Any], init: Callable[[nn.Module], None] | None = None
    ) -> None:
        """Compute the outputs of `inputs`, which creates lazy parameters, and apply `init`."""
        self.forward(*inputs)
        if init is not None:
            self.net.apply(init)


class Classifier(Module):
    """Base class of classification models: cross-entropy loss and accuracy.

    The outputs are (..., classes) logits and the targets (...) class numbers; all leading
    dimensions count as examples.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> model = d2l.Classifier()
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
        >>> model.accuracy(logits, torch.tensor([0, 1]))
        tensor(0.5000)
        >>> model.loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(0.6931)
    """

    def validation_step(self, batch: Batch) -> None:
        """Plot the loss of a batch as "loss", and the accuracy as "acc"."""
        outputs = self(*batch[:-1])
        self.plot("loss", self.loss(outputs, batch[-1]), train=False)
        self.plot("acc", self.accuracy(outputs, batch[-1]), train=False)

    def accuracy(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:  # noqa: N803
        """Return the share of correct predictions; without `averaged`, a 0 or 1 per example."""
        predicted = Y_hat.reshape(-1, Y_hat.shape[-1]).argmax(dim=1)
        is_correct = (predicted == Y.reshape(-1)).float()
        return is_correct.mean() if averaged else is_correct

    def loss(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:  # noqa: N803
        """Return the mean cross-entropy in nats; without `averaged`, one value per example."""
        return functional.cross_entropy(
            Y_hat.reshape(-1, Y_hat.shape[-1]),
            Y.reshape(-1),
            reduction="mean" if averaged else "none",
        )


class LinearRegression(Module):
    """Linear regression with mean squared error, trained by SGD (section 3.5).

    The first call determines the number of features.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> model = d2l.LinearRegression(lr=0.1)
        >>> model(torch.zeros(2, 3)).shape
        torch.Size([2, 1])
        >>> weight, bias = model.get_w_b()
        >>> weight.shape, bias.shape
        (torch.Size([1, 3]), torch.Size([1]))
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.LazyLinear(1)

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803
        """Return the predictions (batch, 1) of inputs (batch, features)."""
        predictions: Tensor = self.net(X)
        return predictions

    def loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(y_hat, y)

    def get_w_b(self) -> tuple[Tensor, Tensor]:
        """Return the weight and the bias."""
        return self.net.weight.data, self.net.bias.data
