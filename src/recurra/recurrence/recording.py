"""The states of a recurrent layer at every step, and the gradients with respect to them.

Backends compute all steps of a layer in one operation of autograd, in which the hidden states are
not separate tensors. Here, the layer runs one step at a time, and the state of each step is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recurra.recurrence.cells import State
from recurra.recurrence.segments import RunSegment


@contextmanager
def record_states(layer: torch.nn.Module) -> Iterator[StateRecord]:
    """Keep the states of the next call of a layer, so that gradients at each step can be computed.

    The loss L depends on the hidden state h_t in two ways: through the output of step t, and
    through all later steps. `record.gradients(loss)` returns the total derivative

        dL/dh_t = dL/dy_t + (dh_{t+1}/dh_t)^T dL/dh_{t+1}

    where dL/dy_t is the part through the output y_t only, which `outputs.retain_grad()` gives. For
    the LSTM, it returns dL/dh_t and dL/dc_t, where c_t acts through h_t and c_{t+1}, and h_t
    through y_t and the gates of step t + 1. The final state counts as the step after the last. In
    the reverse direction, t - 1 replaces t + 1. In a lower layer, y_t is the input of the next one.

    The layer computes the equations step by step during the `with` block, which is slower than the
    compiled kernels and gives the same values up to rounding. The equation is that of
    backpropagation through time (Werbos, 1990). The block may contain a whole model;
    only `layer` is recorded, and it may be called once.

    Args:
        layer: an RNN, GRU or LSTM of `recurra.nn`, or a module that contains exactly one of them.

    Yields:
        A record with `states` and `gradients(loss)`. Both are in the form of `hx` with a dimension
        for the steps, (L*D, T, B, H) for L layers, D directions, T steps, B sequences and
        H units (`proj_size` for h, if it is set): a tensor, or for the LSTM a pair (h, c).

    Raises:
        TypeError: there is no such layer, or there are several.
        RuntimeError: the layer was called twice, or not at all before the record is read.

    Examples:
        >>> import torch
        >>> from recurra import nn
        >>> lstm = nn.LSTM(input_size=3, hidden_size=4, num_layers=2)
        >>> with nn.record_states(lstm) as record:
        ...     outputs, _ = lstm(torch.randn(5, 2, 3))
        ...     loss = outputs[-1].sum()
        >>> h_grad, c_grad = record.gradients(loss)
        >>> h_grad.shape
        torch.Size([2, 5, 2, 4])
        >>> h_grad[1].norm(dim=(1, 2)).shape  # the top layer, one norm per step
        torch.Size([5])
    """
    layer = _only_layer(layer)
    before, record = layer._state_record, StateRecord()
    layer._state_record = record
    try:
        yield record
    finally:
        layer._state_record = before


def _only_layer(module: torch.nn.Module) -> torch.nn.RNNBase:
    """Return the only layer of recurra.nn that a module is or contains.

    Raises:
        TypeError: there is none, or there are several.
    """
    found = {}
    if isinstance(module, torch.nn.Module):
        found = {name: m for name, m in module.named_modules() if hasattr(m, "_state_record")}
    if len(found) == 1:
        (layer,) = found.values()
        assert isinstance(layer, torch.nn.RNNBase)
        return layer
    if found:
        raise TypeError(
            f"record_states records one layer, but {type(module).__name__} contains"
            f" {', '.join(found)}; pass one of these"
        )
    raise TypeError(
        "record_states requires an RNN, GRU or LSTM of recurra.nn, or a module that contains one,"
        f" not {type(module)}; load the weights of a layer of torch.nn with load_state_dict"
    )


class StateRecord:
    """The states of one call of a layer, see `recurra.nn.record_states`.

    L layers, D directions, T steps, B sequences, H hidden width.
    """

    def __init__(self) -> None:
        self._steps: list[list[State]] | None = None
        self._order: Tensor | None = None
        self._has_batch = True

    def begin(self, num_sweeps: int, order: Tensor | None = None, has_batch: bool = True) -> None:
        """Prepare for a call with `num_sweeps` layers and directions.

        Args:
            num_sweeps: layers times directions.
            order: the position of each sequence in the batch, if these are sorted by length.
            has_batch: whether the input has a dimension for the batch.

        Raises:
            RuntimeError: the record has the states of another call.
        """
        if self._steps is not None:
            raise RuntimeError(
                "the layer was called twice in one record_states block; open a block for each call"
            )
        self._steps = [[] for _ in range(num_sweeps)]
        self._order, self._has_batch = order, has_batch

    def recorded(self, run_segment: RunSegment, index: int, backward: bool) -> RunSegment:
        """Return a function that computes the same segment step by step, and keeps the states."""
        assert self._steps is not None
        steps = self._steps[index]

        def run_steps(segment: Tensor, state: State) -> tuple[Tensor, State]:
            outputs = []
            for inputs in torch.split(segment, 1):
                _, state = run_segment(inputs, state)
                state = tuple(_differentiable(part) for part in state)
                # Positions count from the start of the text in both directions.
                steps.insert(0 if backward else len(steps), state)
                # The output of these cells is their first state. It is computed from the kept
                # tensor, so that the gradient of the output flows through that tensor.
                outputs.append(state[0])
            return torch.stack(outputs), state

        return run_steps

    @property
    def states(self) -> Any:
        """The states after each step, each (L*D, T, B, H), without gradient; (L*D, T, H) if the
        input has no batch.

        Positions after the end of a sequence are zero.
        """
        return self._stacked([[part.detach() for part in state] for state in self._flat()])

    def gradients(self, loss: Tensor) -> Any:
        """Return the total derivatives of a scalar loss with respect to the states of each step.

        The graph is kept, so `loss.backward()` can follow.

        Returns:
            Tensors of the shape of `states`. States on which the loss does not depend have the
            gradient zero.

        Raises:
            RuntimeError: the loss is not a scalar or requires no gradient, or the graph was freed
                by an earlier `backward`.
        """
        states = self._flat()
        tensors = [part for state in states for part in state]
        found = iter(torch.autograd.grad(loss, tensors, retain_graph=True, materialize_grads=True))
        return self._stacked([[next(found) for _ in state] for state in states])

    def _flat(self) -> list[State]:
        """Return the states of all layers and directions, and of the steps within each."""
        if self._steps is None:
            raise RuntimeError("the layer was not called in the record_states block")
        return [state for steps in self._steps for state in steps]

    def _stacked(self, states: list[Any]) -> Any:
        assert self._steps is not None
        num_sweeps, batch = len(self._steps), max(len(state[0]) for state in states)
        results = []
        for parts in zip(*states, strict=True):
            rows = torch.stack([_padded(part, batch) for part in parts])
            stacked = rows.view(num_sweeps, len(rows) // num_sweeps, *rows.shape[1:])
            if self._order is not None:
                stacked = stacked.index_select(2, self._order)
            results.append(stacked if self._has_batch else stacked.squeeze(2))
        return tuple(results) if len(results) > 1 else results[0]


def _differentiable(state: Tensor) -> Tensor:
    """Return a state that requires a gradient even if no parameter does."""
    if state.requires_grad or not torch.is_grad_enabled():
        return state
    return state.detach().requires_grad_()


def _padded(rows: Tensor, batch: int) -> Tensor:
    """Return (b, H) with rows of zeros to (batch, H)."""
    return torch.cat([rows, rows.new_zeros(batch - len(rows), *rows.shape[1:])])
