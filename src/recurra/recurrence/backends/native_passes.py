"""Forward and backward pass of one layer by the compiled kernels.

The kernels contain the loop over time. This module contains the parts that all cells share: the
projection of the inputs (for token ids, a table of rows), and one product over all T*B rows for
each weight gradient.
Tensors are fp32 on a CPU; in bf16 the operands of products are rounded, and state, sums and
gradients stay fp32. The passes are independent of autograd.

Calls that depend on values are made through `do`, so that they can be recorded; see
`kernels/recorder.py`.
"""

from __future__ import annotations

import enum
from ctypes import byref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.kernels import library, structures
from recurra.kernels.buffers import Workspace
from recurra.kernels.matmul_selection import matmul_kernel
from recurra.kernels.products import (
    SINGLE,
    add_rows,
    check_ids,
    dense_product,
    gradient_product,
    take_operand,
    transpose,
)
from recurra.kernels.recorder import Do, at_once
from recurra.recurrence.cells import LayerParameters, State

_FLOAT32 = torch.empty(0)


class KeptSteps(enum.Enum):
    """Which values a forward pass keeps."""

    FOR_BACKWARD = enum.auto()
    """The states of all steps, and the values that the backward pass reads."""
    STATES = enum.auto()
    """The states of all steps."""
    LAST_STATE = enum.auto()
    """The last state. Earlier ones are overwritten, because a long sequence of them would evict the
    weights from the caches."""


class Trace(NamedTuple):
    """The buffers of a forward pass; `backward` requires `KeptSteps.FOR_BACKWARD`.

    Attributes:
        hidden: (T+1, B, H), h before the first step and after each step; (2, B, H) with
            `KeptSteps.LAST_STATE`, where the state after t steps is at `t % 2`.
        cells: the second state likewise, or None.
        saved: (T, B, S*H), the values that the cell saves; None if it saves none, or without
            `KeptSteps.FOR_BACKWARD`.
    """

    hidden: Tensor
    cells: Tensor | None
    saved: Tensor | None


@dataclass(frozen=True)
class LayerPasses:
    """Forward and backward pass of one layer.

    Args:
        cell: the name of the cell.
        dtype: dtype of the products' operands, fp32 or bf16.
        recurrent_scale: the factor of every gradient that passes to the step before.
        workspace: the source of buffers; persistent buffers must not be shared between layers.
        results: the source of the tensors that are returned.
        do: the function that makes each call, at once or recorded.
    """

    cell: str
    dtype: torch.dtype
    recurrent_scale: float
    workspace: Workspace
    results: Workspace
    do: Do = at_once

    @property
    def kind(self) -> int:
        """The number of the matrix-product kernel, see `matmul_kernel`."""
        return matmul_kernel(self.dtype)

    @property
    def _layout(self) -> structures.Description:
        return library.cell_layout(self.cell)

    def forward(
        self, inputs: Tensor, state: State, parameters: LayerParameters, *, saves: bool
    ) -> Trace:
        """Run the layer through time.

        Args:
            inputs: (T, B, I) numbers or (T, B) ids.
            state: the state before the first step, each (B, H).
            parameters: the parameters of the layer, all fp32.
            saves: whether a backward pass will follow.

        Raises:
            IndexError: an id is not below I.
        """
        steps, batch = inputs.shape[:2]
        kept = KeptSteps.FOR_BACKWARD if saves else KeptSteps.STATES
        layer, trace = self.prepare(steps, batch, state, parameters, kept)
        projected, ids = self._project(inputs, parameters)
        layer.point(projected=projected, ids=ids)
        self.do(library.load().recurra_layer_forward, byref(layer))
        return trace

    def prepare(
        self, steps: int, batch: int, state: State, parameters: LayerParameters, kept: KeptSteps
    ) -> tuple[structures.Description, Trace]:
        """Return the arguments of a forward pass, without its inputs, and its result buffers."""
        layer, layout = self._describe(steps, batch, parameters), self._layout
        units, keeps_two = layer.units, kept is KeptSteps.LAST_STATE
        layer.keeps_two, places = keeps_two, 2 if keeps_two else steps + 1
        hidden = self._take_result("hidden", places, batch, units)
        self.do(hidden[0].copy_, state[0])
        cells = saved = None
        if layout.states > 1:
            cells = self._take("cells", places, batch, units)
            self.do(cells[0].copy_, state[1])
        if kept is KeptSteps.FOR_BACKWARD and layout.saved:
            saved = self._take("saved", steps, batch, layout.saved * units)
        operand = self._take_operand("hidden operand", places * batch, units, units)
        inner_bias = None
        if layout.inner_gates and parameters.bias_hh is not None:
            inner_bias = parameters.bias_hh[self._outer_gates * units :].contiguous()
        layer.point(
            inner_bias=inner_bias, hidden=hidden, hidden_operand=operand, cells=cells, saved=saved
        )
        return layer, Trace(hidden, cells, saved)

    def table(self, parameters: LayerParameters) -> Tensor:
        """Return x W_ih' and biases for every one-hot x, (V, G*H)."""
        weight = parameters.weight_ih
        table = self._take("table", weight.shape[1], weight.shape[0])
        self.do(transpose, weight.contiguous(), table, self.foldable_bias(parameters))
        return table

    def foldable_bias(self, parameters: LayerParameters) -> Tensor | None:
        """Return the biases that can be added before the loop through time, (G*H,)."""
        bias, recurrent = parameters.bias_ih, parameters.bias_hh
        if bias is None or recurrent is None:
            return bias
        folded = self._take("folded bias", len(bias))
        self.do(torch.add, bias, recurrent, out=folded)
        if self._layout.inner_gates:
            # The part of b_hh that belongs to inner gates is added inside the loop.
            inner = slice(self._outer_gates * len(bias) // self._layout.gates, None)
            self.do(folded[inner].copy_, bias[inner])
        return folded

    def backward(
        self,
        trace: Trace,
        inputs: Tensor,
        parameters: LayerParameters,
        grad_outputs: Tensor,
        grad_final: State,
        gradients: LayerParameters,
        *,
        needs_inputs: bool,
    ) -> tuple[Tensor | None, State]:
        """Run back through time, and write the gradients of the parameters.

        Args:
            trace, inputs, parameters: those of the forward pass.
            grad_outputs: (T, B, H), contiguous.
            grad_final: gradients of the state after the last step, each (B, H), contiguous.
            gradients: contiguous tensors like the parameters, which are overwritten.
            needs_inputs: whether to compute the gradient of the inputs.

        Returns:
            The gradients of the inputs, or None, and of the state before the first step.
        """
        steps, batch = inputs.shape[:2]
        layer = self._describe(steps, batch, parameters)
        width = self._layout.deltas * layer.units
        rounded = self._take_operand("delta operand", steps * batch, width, layer.units)
        deltas = self._take("deltas", steps * batch, width) if rounded is None else None
        grad_bias = self._take("grad bias", width)
        initial = tuple(
            self._take_result(f"initial {index}", *grad.shape)
            for index, grad in enumerate(grad_final)
        )
        layer.point(
            hidden=trace.hidden,
            cells=trace.cells,
            saved=trace.saved,
            grad_outputs=grad_outputs,
            grad_hidden=grad_final[0],
            grad_initial=initial[0],
            deltas=deltas,
            delta_operand=rounded,
            grad_bias=grad_bias,
        )
        if len(grad_final) > 1:
            layer.point(grad_cells=grad_final[1], grad_initial_cells=initial[1])
        self.do(library.load().recurra_layer_backward, byref(layer))
        self._write_bias_gradients(grad_bias, gradients)
        operand = deltas if rounded is None else rounded
        assert operand is not None
        self._write_recurrent_gradient(operand, trace.hidden, gradients)
        grad_inputs = self._write_input_gradients(
            inputs, parameters, operand, gradients, needs_inputs
        )
        return grad_inputs, initial

    @property
    def _outer_gates(self) -> int:
        """The number of gates whose recurrent part is added unchanged."""
        outer: int = self._layout.gates - self._layout.inner_gates
        return outer

    def _take(self, name: str, *shape: int) -> Tensor:
        return self.workspace.take(name, *shape, like=_FLOAT32)

    def _take_result(self, name: str, *shape: int) -> Tensor:
        return self.results.take(name, *shape, like=_FLOAT32)

    def _take_operand(self, name: str, rows: int, numbers: int, units: int) -> Tensor | None:
        """Return a buffer for rows of rounded operands, or None if operands are not rounded.

        A row is padded so that it does not end in the middle of a pair.
        """
        if self.kind == SINGLE:
            return None
        odd = units % 2
        width = numbers + odd * (1 if numbers % 2 else 2)
        return take_operand(self.workspace, self.kind, name, rows, width, like=_FLOAT32)

    def _describe(
        self, steps: int, batch: int, parameters: LayerParameters
    ) -> structures.Description:
        """Return the arguments that both passes need."""
        assert parameters.weight_hh is not None
        weight_hh = parameters.weight_hh.contiguous()
        units, threads, kernels = weight_hh.shape[1], library.threads(), library.load()
        numbers = kernels.recurra_packed_numbers(len(weight_hh) // units, units, units)
        packed = self._take("packed weight", numbers)
        spare = self._take("spare", kernels.recurra_spare_numbers(threads, batch, units))
        layer = structures.Layer(
            cell=structures.COMPILED_CELLS[self.cell],
            kind=self.kind,
            threads=threads,
            steps=steps,
            batch=batch,
            units=units,
            recurrent_scale=self.recurrent_scale,
        )
        layer.point(weight_hh=weight_hh, packed=packed, spare=spare)
        return layer

    def _project(self, inputs: Tensor, parameters: LayerParameters) -> tuple[Tensor, Tensor | None]:
        """Return x_t W_ih' with the biases that can be added in advance, and ids to look it up.

        For numbers it is (T, B, G*H), without ids; for ids it is the table of all rows, (V, G*H).
        """
        weight = parameters.weight_ih
        if not inputs.is_floating_point():
            ids = inputs.long().contiguous()
            self.do(check_ids, ids, weight.shape[1])
            return self.table(parameters), ids
        projected = self._take("projected", *inputs.shape[:2], weight.shape[0])
        flat, rows = inputs.flatten(0, 1).contiguous(), projected.flatten(0, 1)
        right, bias = weight.contiguous().t(), self.foldable_bias(parameters)
        dense_product(self.kind, flat, right, rows, self.workspace, self.do, bias)
        return projected, None

    def _write_recurrent_gradient(
        self, operand: Tensor, hidden: Tensor, gradients: LayerParameters
    ) -> None:
        before, out = hidden[:-1].flatten(0, 1), gradients.weight_hh
        assert out is not None
        units = out.shape[1]
        # The deltas of the recurrent parts of inner gates come last.
        parts = [slice(0, self._outer_gates)]
        if self._layout.inner_gates:
            parts.append(slice(self._layout.gates, self._layout.deltas))
        first = 0
        for part in parts:
            columns = operand[:, part.start * units : part.stop * units]
            rows = out[first : first + columns.shape[1]]
            gradient_product(self.kind, columns, before, rows, self.workspace, self.do)
            first += len(rows)

    def _write_input_gradients(
        self,
        inputs: Tensor,
        parameters: LayerParameters,
        operand: Tensor,
        gradients: LayerParameters,
        needs_inputs: bool,
    ) -> Tensor | None:
        weight = parameters.weight_ih
        width = len(weight)
        if not inputs.is_floating_point():
            table = self._take("table", weight.shape[1], width)
            ids = inputs.long().contiguous()
            self.do(add_rows, ids, operand[:, :width], table, clears=True)
            self.do(transpose, table, gradients.weight_ih)
            return None
        flat, columns = inputs.flatten(0, 1).contiguous(), operand[:, :width]
        gradient_product(self.kind, columns, flat, gradients.weight_ih, self.workspace, self.do)
        if not needs_inputs:
            return None
        grad_inputs = self._take_result("grad inputs", *inputs.shape)
        rows = grad_inputs.flatten(0, 1)
        dense_product(self.kind, columns, weight.contiguous(), rows, self.workspace, self.do)
        return grad_inputs

    def _write_bias_gradients(self, grad_bias: Tensor, gradients: LayerParameters) -> None:
        if gradients.bias_ih is None or gradients.bias_hh is None:
            return
        width = len(gradients.bias_ih)
        self.do(gradients.bias_ih.copy_, grad_bias[:width])
        self.do(gradients.bias_hh.copy_, grad_bias[:width])
        if self._layout.inner_gates:
            first = self._outer_gates * width // self._layout.gates
            self.do(gradients.bias_hh[first:].copy_, grad_bias[width:])
