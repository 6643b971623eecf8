"""RNN, GRU and LSTM: drop-in replacements for the layers of torch.nn.

Each class is a subclass of the class in torch.nn. The constructor, the parameters with their names
and initial values, the state dict, and the checks of arguments with their errors are those of
torch; only the computation differs. Inputs are numbers, as in torch, not token ids.

T steps, B batch, I input width, H hidden width, L layers, D directions (1 or 2). Internally,
tensors are time-major, and a batch of sequences of unequal length is a list of segments (t, b, I).
During the t steps of a segment, the same b sequences are active: the longest ones.

Under autocast, the operands of products are rounded to bf16 or fp16, sums and states are fp32 until
the last step, and outputs and states are returned in the dtype that torch.nn returns. Without
autocast, fp32 products are computed in fp32: on a GPU, cuDNN does not round their operands to TF32.

The layers also support what torch.nn supports beyond a call and its backward pass, where the
backends `bptt` and `native` are replaced:

- Inside the transforms of torch.func (`grad`, `jacrev`, `vmap`, ...), and with forward-mode
  differentiation, `reference` computes the layer: the equations, step by step.
- Gradients of gradients and batched gradients (`is_grads_batched`) are computed by `reference` in
  the backward pass.
- In `torch.export` and `torch.jit.trace`, with tensor subclasses, and below dispatch modes such as
  `FakeTensorMode`, torch's own operators compute the layer.

As with torch's layers, torch.compile leaves the layers uncompiled unless
`torch._dynamo.config.allow_rnn` is set. torch.jit.script rejects the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recurra.recurrence.backends import (
    Requirements,
    is_observed,
    is_traced,
    is_transformed,
    require_name,
)
from recurra.recurrence.cells import CELLS, LayerParameters, State, find_cell
from recurra.recurrence.layer import choose_backend, run
from recurra.recurrence.precision import (
    FP32,
    Precision,
    autocast_precision,
    keep_products_in_backward,
)
from recurra.recurrence.recording import StateRecord, record_states
from recurra.recurrence.segments import (
    RunSegment,
    drop,
    flatten,
    split,
    sweep_backward,
    sweep_forward,
)

__all__ = ["GRU", "LSTM", "RNN", "record_states"]

_CELLS = {c.torch_kernel.mode: name for name, c in CELLS.items() if c.torch_kernel is not None}
"""The name of the cell for each `mode` of torch's layers."""


class _RecurraRNNBase(torch.nn.RNNBase):
    """Common base class, which overrides the `forward` that the classes inherit from torch."""

    backend: str = "auto"
    _state_record: StateRecord | None = None

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        require_name(backend)
        super().__init__(*args, **kwargs)
        self.backend = backend

    def extra_repr(self) -> str:
        """Return the arguments of the constructor that are not the defaults."""
        shown = super().extra_repr()
        return shown if self.backend == "auto" else f"{shown}, backend={self.backend}"

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the layers through time.

        Args:
            input: (T, B, I), or (B, T, I) with `batch_first`, or (T, I), or a PackedSequence.
            hx: the initial state, (L*D, B, H) or (L*D, H) without a batch; for the LSTM a pair,
                whose h has the width of the projection if there is one. None is zero.

        Returns:
            The outputs of the top layer in the form of the input, and the final state in the form
            of `hx`.

        Raises:
            RuntimeError, ValueError: shapes or dtypes do not fit, as in torch.nn.
        """
        backend = "reference" if self._state_record is not None else self._choose_backend(input, hx)
        if backend == "library":
            # The forward method of torch passes all layers and directions to its kernels at once.
            if self.weight_ih_l0.is_cuda and not (
                torch.compiler.is_compiling() or is_observed() or is_transformed()
            ):
                return self._forward_in_fp32(input, hx)
            return super().forward(input, hx)
        weights = self.all_weights
        known = self._flat_weights[0]
        if known is None or known.dtype != weights[0][0].dtype:
            # torch checks the dtype of the input there; functional_call does not update it.
            self._init_flat_weights()
        layers = [_layer_parameters(layer, self.bias) for layer in weights]
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, layers, backend)
        return self._forward_padded(input, hx, layers, backend)

    def _forward_in_fp32(self, input: Any, hx: Any) -> Any:
        """Run torch's forward method, without rounding the operands of fp32 products to TF32."""
        with FP32.products():
            outputs, state = super().forward(input, hx)
            node = (outputs.data if isinstance(outputs, PackedSequence) else outputs).grad_fn
            # The node of the kernel has several inputs. A view, such as that for a sequence without
            # a batch dimension, has one.
            while node is not None and len(node.next_functions) == 1:
                node = node.next_functions[0][0]
            keep_products_in_backward(node)
        return outputs, state

    def _choose_backend(self, input: Any, hx: Any) -> str:
        """Return the name of the backend for this call, see the documentation of the module."""
        if self.backend in ("reference", "library"):
            return self.backend
        if torch.compiler.is_dynamo_compiling():
            return "library"  # Dynamo cannot trace the checks below.
        data = input.data if isinstance(input, PackedSequence) else input
        state = hx if isinstance(hx, tuple) else (hx,)
        if is_transformed():
            return "reference"
        if is_observed() or is_traced(data, *state, *self._flat_weights):
            # torch's operators have dynamic shapes and rules for each kind of tensor.
            return "library"
        if self.backend != "auto":
            return self.backend
        weight: Tensor = self.weight_ih_l0  # type: ignore[assignment]
        needs = Requirements(
            find_cell(_CELLS[self.mode]),
            data.device,
            weight.dtype,
            product_dtype=autocast_precision(weight).product_dtype(weight.dtype),
            is_projected=self.proj_size > 0,
        )
        return choose_backend(needs)

    def _forward_padded(
        self, input: Tensor, hx: Any, layers: list[LayerParameters], backend: str
    ) -> tuple[Tensor, Any]:
        rank = input.dim()
        if rank not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {rank}D")
        batch_dim = 0 if self.batch_first else 1
        if rank == 2:
            input = input.unsqueeze(batch_dim)
        state = self._initial_state(input, hx, None, rank)
        if input.shape[1 - batch_dim] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        segment = input.transpose(0, 1) if self.batch_first else input
        if self._state_record is not None:
            self._state_record.begin(len(layers), has_batch=rank == 3)
        (outputs,), state = self._run_stack([segment], state, layers, backend)
        if self.batch_first:
            outputs = outputs.transpose(0, 1)
        if rank == 2:
            outputs, state = outputs.squeeze(batch_dim), tuple(s.squeeze(1) for s in state)
        return outputs, self._as_hidden(state)

    def _forward_packed(
        self, input: PackedSequence, hx: Any, layers: list[LayerParameters], backend: str
    ) -> tuple[PackedSequence, Any]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if self._state_record is not None:
            self._state_record.begin(len(layers), order=unsorted_indices)
        if hx is not None:
            hx = self.permute_hidden(hx, sorted_indices)
        state = self._initial_state(data, hx, batch_sizes, None)
        segments = split(data, batch_sizes)
        outputs, state = self._run_stack(segments, state, layers, backend, is_packed=True)
        packed = PackedSequence(flatten(outputs), batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(self._as_hidden(state), unsorted_indices)

    def _initial_state(
        self, input: Tensor, hx: Any, batch_sizes: Tensor | None, rank: int | None
    ) -> State:
        """Return the state before the first step, each tensor (L*D, B, H); zero if `hx` is None.

        `rank` is the rank of the caller's input, which `hx` must have too; None if packed.
        """
        if hx is None:
            state = self._zero_state(input, batch_sizes)
        else:
            state = tuple(hx) if self.mode == "LSTM" else (hx,)
            if rank is not None and any(s.dim() != rank for s in state):
                ranks = ", ".join(f"{s.dim()}-D" for s in state)
                given = "batched 3-D" if rank == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"For {given} input, hx should also be {rank}-D but got {ranks} tensor"
                )
            if self.mode == "LSTM" and len(state) != 2:
                raise RuntimeError(f"hx of an LSTM is (h, c), but got {len(state)} tensors")
            if rank == 2:
                state = tuple(s.unsqueeze(1) for s in state)
        hidden = self._as_hidden(state)
        self.check_forward_args(input, hidden, batch_sizes)
        if not torch.is_autocast_enabled(input.device.type):
            for s in state:
                if s.dtype != input.dtype:
                    raise RuntimeError(f"input is {input.dtype}, but hidden is {s.dtype}")
        return state

    def _zero_state(self, input: Tensor, batch_sizes: Tensor | None) -> State:
        h = input.new_zeros(self.get_expected_hidden_size(input, batch_sizes))
        if self.mode != "LSTM":
            return (h,)
        return h, input.new_zeros(*h.shape[:2], self.hidden_size)

    def _as_hidden(self, state: State) -> Any:
        """Return the state in the form of torch.nn: a tensor, or for the LSTM the pair (h, c)."""
        return state if self.mode == "LSTM" else state[0]

    def _run_stack(
        self,
        segments: list[Tensor],
        state: State,
        layers: list[LayerParameters],
        backend: str,
        is_packed: bool = False,
    ) -> tuple[list[Tensor], State]:
        """Run all layers and directions; `layers` and `state` are sorted by layer, direction."""
        weight = layers[0].weight_ih
        device, precision = weight.device.type, autocast_precision(weight)
        result_dtype = None
        if torch.is_autocast_enabled(device):
            result_dtype = self._autocast_dtype(state, weight, is_packed)
            segments = [s.to(weight.dtype) for s in segments]
            state = tuple(s.to(weight.dtype) for s in state)
        finals: list[State] = []
        # The precision is selected above; autocast must not round again inside.
        with torch.autocast(device, enabled=False):
            while len(finals) < len(layers):
                if finals and self.training and self.dropout > 0.0:
                    segments = drop(segments, self.dropout)
                directions = []
                for sweep in (sweep_forward, sweep_backward)[: 1 + self.bidirectional]:
                    index = len(finals)
                    run_segment: RunSegment = partial(
                        _run_segment, _CELLS[self.mode], layers[index], backend, precision
                    )
                    if self._state_record is not None:
                        backward = sweep is sweep_backward
                        run_segment = self._state_record.recorded(run_segment, index, backward)
                    outputs, final = sweep(run_segment, segments, tuple(s[index] for s in state))
                    directions.append(outputs)
                    finals.append(final)
                segments = [
                    parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
                    for parts in zip(*directions, strict=True)
                ]
        if len(segments) == 1 and segments[0]._is_view() and segments[0].requires_grad:
            # The backward pass needs this tensor unchanged, and the caller may write to the result.
            segments = [segments[0].clone()]
        state = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if result_dtype is not None:
            segments = [s.to(result_dtype) for s in segments]
            state = tuple(s.to(result_dtype) for s in state)
        return segments, state

    def _autocast_dtype(self, state: State, weight: Tensor, is_packed: bool) -> torch.dtype:
        """Return the dtype of outputs and states under autocast, which is that of torch.nn."""
        if weight.dtype == torch.float64:
            return weight.dtype
        device = weight.device.type
        is_fused = self.mode != "GRU" and not (
            self.mode == "LSTM" and (is_packed or self.proj_size)
        )
        if device == "cpu" and not is_fused:
            # There torch casts the operands of each product only, and the state keeps its dtype.
            return state[0].dtype
        return torch.get_autocast_dtype(device)


class RNN(_RecurraRNNBase, torch.nn.RNN):
    """Elman's recurrent layers, as torch.nn.RNN: its arguments, shapes, parameters and errors.

    Args:
        *args: as torch.nn.RNN; `nonlinearity` is "tanh" or "relu".
        backend: "auto", or a name in `config.backends.BACKEND_MODULES`.
        **kwargs: as torch.nn.RNN.

    Raises:
        ConfigError: there is no such backend.

    Examples:
        >>> import torch
        >>> from recurra import nn
        >>> rnn = nn.RNN(input_size=3, hidden_size=4, nonlinearity="relu")
        >>> outputs, h = rnn(torch.randn(5, 2, 3))
        >>> outputs.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """


class GRU(_RecurraRNNBase, torch.nn.GRU):
    """Gated recurrent units, as torch.nn.GRU: its arguments, shapes, parameters and errors.

    Args:
        *args: as torch.nn.GRU.
        backend: "auto", or a name in `config.backends.BACKEND_MODULES`.
        **kwargs: as torch.nn.GRU.

    Raises:
        ConfigError: there is no such backend.

    Examples:
        >>> import torch
        >>> from recurra import nn
        >>> gru = nn.GRU(input_size=3, hidden_size=4, batch_first=True, bidirectional=True)
        >>> outputs, h = gru(torch.randn(2, 5, 3))
        >>> outputs.shape, h.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 4]))
    """


class LSTM(_RecurraRNNBase, torch.nn.LSTM):
    """Long short-term memory, as torch.nn.LSTM: its arguments, shapes, parameters and errors.

    Args:
        *args: as torch.nn.LSTM, `proj_size` included.
        backend: "auto", or a name in `config.backends.BACKEND_MODULES`.
        **kwargs: as torch.nn.LSTM.

    Raises:
        ConfigError: there is no such backend.

    Examples:
        >>> import torch
        >>> from recurra import nn
        >>> lstm = nn.LSTM(input_size=3, hidden_size=4, num_layers=2)
        >>> outputs, (h, c) = lstm(torch.randn(5, 2, 3))
        >>> outputs.shape, h.shape, c.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]), torch.Size([2, 2, 4]))
    """


def _layer_parameters(weights: Sequence[Tensor], has_bias: bool) -> LayerParameters:
    """Convert an entry of `all_weights`: W_ih, W_hh, biases if any, W_hr if projected."""
    weight_ih, weight_hh, *rest = weights
    return LayerParameters(weight_ih, weight_hh, *(rest if has_bias else [None, None, *rest]))


def _run_segment(
    cell: str,
    parameters: LayerParameters,
    backend: str,
    precision: Precision,
    segment: Tensor,
    state: State,
) -> tuple[Tensor, State]:
    return run(cell, segment, state, parameters, backend, precision=precision)
