"""Loss and gradients of a model by autograd, the reference for `compiled.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State
from recurra.recurrence.dropout import Rows
from recurra.runtime.distributed import Processes, peer_errors_translated


class AutogradGradients:
    """Compute loss and gradients by autograd.

    Attributes:
        rows: which rows of the global batch this process computes; None if it computes all.

    Args:
        model: the model, already on its device.
        processes: if given, gradients are averaged over them in every backward pass.
    """

    def __init__(self, model: RecurrentLM, processes: Processes | None = None) -> None:
        self._model = model
        self._objective = _Objective(model)
        self._joined = processes.joined(self._objective) if processes else self._objective
        self.rows: Rows | None = None

    @torch.enable_grad()
    def compute(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        recurrent_gradient_scale: float = 1.0,
        weight: float = 1.0,
    ) -> tuple[float, State]:
        """Write the gradient of `weight` times the mean loss to every parameter's `grad`.

        Args:
            ids, targets: (B, T) int64; `targets[b, t]` follows `ids[b, t]`.
            state: the state before the batch, each tensor (L, B, H); None is zero.
            recurrent_gradient_scale: multiplies every gradient that passes from one step to the
                step before.
            weight: multiplies the loss before the backward pass.

        Returns:
            The mean loss in nats per token, without the weight, and the detached final state.

        Raises:
            LostProcessError: another process has ended.
        """
        loss, after = self._joined(ids, targets, state, recurrent_gradient_scale, self.rows)
        self._model.zero_grad(set_to_none=True)
        with peer_errors_translated():
            torch.autograd.backward(loss if weight == 1.0 else loss * weight)
        return float(loss.detach()), tuple(part.detach() for part in after)

    def close(self) -> None:
        """Release the DistributedDataParallel wrapper; no further gradients can be computed."""
        del self._joined


class _Objective(nn.Module):
    """The loss as the forward pass of a module, which DistributedDataParallel requires."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, targets: Tensor, state: State | None, scale: float, rows: Rows | None
    ) -> tuple[Tensor, State]:
        return self.model.loss(ids, targets, state, recurrent_gradient_scale=scale, rows=rows)
