"""`Trainer`: the training loop (sections 3.2 and 3.4), with gradient clipping (section 9.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recurra import d2l
from recurra.d2l.english_1_0.hyperparameters import HyperParameters
from recurra.d2l.updates import clip_to_norm, parameters_of
from recurra.errors import SourceError
from recurra.runtime.openmp import limited_spinning


class Trainer(HyperParameters):
    """Trains a `Module` with the batches of a `DataModule`.

    Args:
        max_epochs: number of epochs.
        num_gpus: maximum number of GPUs; the first one is used if there is one and this is not 0.
        gradient_clip_val: maximum norm of the gradients; 0 for no limit.

    Attributes:
        epoch: number of the present epoch, from 0.
        train_batch_idx: number of training batches so far.
        val_batch_idx: number of validation batches so far.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> class Line(d2l.DataModule):
        ...     def get_dataloader(self, train):
        ...         x = torch.linspace(-1, 1, 20)[:, None]
        ...         return torch.utils.data.DataLoader(list(zip(x, 3 * x)), batch_size=5)
        >>> model = d2l.LinearRegression(lr=0.3)
        >>> d2l.Trainer(max_epochs=20).fit(model, Line())
        >>> round(model.get_w_b()[0].item(), 2)
        3.0
    """

    max_epochs: int
    num_gpus: int
    gradient_clip_val: float

    def __init__(self, max_epochs: int, num_gpus: int = 0, gradient_clip_val: float = 0) -> None:
        self.save_hyperparameters()
        self.gpus = [d2l.gpu(i) for i in range(min(num_gpus, d2l.num_gpus()))]

    @limited_spinning()
    def fit(self, model: Any, data: Any) -> None:
        """Train the model for `max_epochs` epochs, each followed by a validation.

        Raises:
            SourceError: there is no batch to train on.
            NonFiniteError: gradients are clipped, and one became NaN or infinite.
        """
        self.prepare_data(data)
        self.prepare_model(model)
        self.optim = model.configure_optimizers()
        self.epoch = self.train_batch_idx = self.val_batch_idx = 0
        for epoch in range(self.max_epochs):
            self.epoch = epoch
            self.fit_epoch()

    def prepare_data(self, data: Any) -> None:
        """Read the batches of the data, and count them."""
        self.train_dataloader = data.train_dataloader()
        self.val_dataloader = data.val_dataloader()
        self.num_train_batches = len(self.train_dataloader)
        self.num_val_batches = 0 if self.val_dataloader is None else len(self.val_dataloader)
        if not self.num_train_batches:
            raise SourceError("there is no batch to train on: the training data is empty")

    def prepare_model(self, model: Any) -> None:
        """Connect the model with this trainer, and move it to the GPU if one is used."""
        model.trainer = self
        model.board.xlim = [0, self.max_epochs]
        if self.gpus:
            model.to(self.gpus[0])
        self.model = model

    def prepare_batch(self, batch: Any) -> Any:
        """Return the tensors of a batch on the device of the model."""
        return [tensor.to(self.gpus[0]) for tensor in batch] if self.gpus else batch

    def fit_epoch(self) -> None:
        """Train for one epoch, and validate."""
        self.model.train()
        for batch in self.train_dataloader:
            loss = self.model.training_step(self.prepare_batch(batch))
            self.optim.zero_grad()
            # Optimizers that are defined in notebooks write to the parameters.
            with torch.no_grad():
                loss.backward()
                if self.gradient_clip_val > 0:
                    self.clip_gradients(self.gradient_clip_val, self.model)
                self.optim.step()
            self.train_batch_idx += 1
        if self.val_dataloader is None:
            return
        self.model.eval()
        for batch in self.val_dataloader:
            with torch.no_grad():
                self.model.validation_step(self.prepare_batch(batch))
            self.val_batch_idx += 1

    def clip_gradients(self, grad_clip_val: float, model: nn.Module) -> None:
        """Scale all gradients in place so that their global L2 norm is at most `grad_clip_val`."""
        clip_to_norm(parameters_of(model), grad_clip_val)
