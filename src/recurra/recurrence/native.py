"""One layer by the compiled kernels: forward and backward through time in C++.

What a layer shares whatever its cell stands here: the projection of the inputs (a table of the
lookup's rows where they are token ids), the memory the kernels write to, and one product for each
weight gradient over all T*B rows. fp32 on a CPU; in bf16 the operands of products are rounded, and
state, sums and gradients stay fp32. A gradient of the gradient is left to `reference`.
"""

from __future__ import annotations

import sys
from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence.bptt import backward_with_graph
from recurra.recurrence.cells import Cell, LayerParameters, State
from recurra.recurrence.reference import project
from recurra.recurrence.workspace import SHELF

_CELLS = {"rnn": 0, "rnn-relu": 1, "gru": 2, "lstm": 3}
_SAVED = {"rnn": 0, "rnn-relu": 0, "gru": 4, "lstm": 4}
"""Values kept per unit and step for the backward pass."""
_DELTAS = {"rnn": 1, "rnn-relu": 1, "gru": 4, "lstm": 4}
"""Gradients per unit and step: of each gate, and of the GRU's h_n."""
_SINGLE, _ROUNDED = 0, 1


def run_layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """One layer through time; arguments and result as in `scan.run`.

    Raises:
        ConfigError: tensors that are not fp32 on a CPU, or a projected LSTM.
        KernelError: the kernels cannot be built or loaded.
    """
    if cell.num_states == 0:
        return torch.tanh(project(inputs, parameters, dtype)), ()
    reason = why_not(inputs, parameters)
    if reason:
        raise ConfigError(f"the native backend {reason}; take another")
    apply: Any = _LayerThroughTime.apply
    if "torch._dynamo" in sys.modules:
        compiler: Any = torch.compiler
        apply = compiler.disable(apply)
    outputs, *final = apply(cell.name, dtype, recurrent_gradient_scale, inputs, *parameters, *state)
    return outputs, tuple(final)


def why_not(inputs: Tensor, parameters: LayerParameters) -> str:
    """What stands in the way of these kernels, as the end of a sentence; empty if nothing does."""
    if parameters.weight_hr is not None:
        return "has no projected LSTM"
    weight = parameters.weight_ih
    if weight.device.type != "cpu":
        return f"computes on a CPU, not on {weight.device.type}"
    if weight.dtype != torch.float32:
        return f"computes in fp32, not in {weight.dtype}"
    if type(inputs) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_exporting():
        return "needs tensors with memory"
    return ""


def product_kind(dtype: torch.dtype) -> int:
    """The kernels' number for products in this format; see `Kind` in `source/kernels.h`."""
    if dtype == torch.float32:
        return _SINGLE
    kind: int = library.load().recurra_best_kind()
    return kind


def operand_dtype(kind: int) -> torch.dtype | None:
    """Of the rounded operands; None where the products take the numbers as they are."""
    return {_SINGLE: None, _ROUNDED: torch.float32}.get(kind, torch.bfloat16)


def check_ids(ids: Tensor, limit: int) -> None:
    """The kernels take ids on trust.

    Args:
        ids: int64, dense.

    Raises:
        IndexError: one of them is negative, or `limit` or more.
    """
    if not library.load().recurra_all_below(ids.numel(), ids.data_ptr(), limit):
        raise IndexError(f"a token id is not between 0 and {limit - 1}")


def gradient_product(kind: int, left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left' right: a gradient summed over all rows of both.

    `left` holds operands of this kind, `right` fp32; columns of wider rows will do.
    """
    threads = library.threads()
    numbers = library.load().recurra_transposed_numbers(threads, len(left), right.shape[1])
    packed = SHELF.borrow(numbers, like=right)
    product = library.GradientProduct(
        kind=kind,
        threads=threads,
        rows=len(left),
        m=left.shape[1],
        n=right.shape[1],
        lda=left.stride(0),
        ldb=right.stride(0),
        ldc=out.stride(0),
        a=left.data_ptr(),
        b=right.data_ptr(),
        c=out.data_ptr(),
        packed=packed.data_ptr(),
    )
    library.load().recurra_multiply_transposed(byref(product))


class _Call:
    """The numbers and the memory that both passes of one layer share."""

    def __init__(self, name: str, dtype: torch.dtype, batch: int, weight_hh: Tensor) -> None:
        self.name = name
        self.library = library.load()
        self.kind = product_kind(dtype)
        self.batch, self.units = batch, weight_hh.shape[1]
        self.gates = weight_hh.shape[0] // self.units
        self.num_deltas = _DELTAS[name]

    def operand(self, rows: int, numbers: int) -> Tensor | None:
        """Memory for rounded operands, (rows, numbers and perhaps one or two more)."""
        dtype = operand_dtype(self.kind)
        if dtype is None:
            return None
        odd = self.units % 2
        width = numbers + odd * (1 if numbers % 2 else 2)
        return SHELF.borrow(rows, width, like=torch.empty(0, dtype=dtype))

    def layer(self, steps: int, weight_hh: Tensor, scale: float) -> tuple[library.Layer, Any]:
        """A description with what every pass needs; and the memory it points to."""
        threads = library.threads()
        numbers = self.library.recurra_packed_numbers(self.gates, self.units)
        packed = SHELF.borrow(numbers, like=weight_hh)
        numbers = self.library.recurra_spare_numbers(threads, self.batch, self.units)
        spare = SHELF.borrow(numbers, like=weight_hh)
        layer = library.Layer(
            cell=_CELLS[self.name],
            kind=self.kind,
            threads=threads,
            steps=steps,
            batch=self.batch,
            units=self.units,
            recurrent_scale=scale,
            weight_hh=library.pointer(weight_hh),
            packed=library.pointer(packed),
            spare=library.pointer(spare),
        )
        return layer, (packed, spare)


class _LayerThroughTime(torch.autograd.Function):
    """One layer through time as a single node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        dtype: torch.dtype,
        scale: float,
        inputs: Tensor,
        *parameters_and_state: Tensor,
    ) -> tuple[Tensor, ...]:
        split = len(LayerParameters._fields)
        parameters = LayerParameters(*parameters_and_state[:split])
        state = parameters_and_state[split:]
        assert parameters.weight_hh is not None
        weight_hh = parameters.weight_hh.contiguous()
        steps, batch = inputs.shape[:2]
        call = _Call(name, dtype, batch, weight_hh)
        layer, memory = call.layer(steps, weight_hh, scale)
        saves = torch.is_grad_enabled() or any(ctx.needs_input_grad)
        projected, ids = _project(inputs, parameters, dtype, name)
        hidden = state[0].new_empty(steps + 1, batch, call.units)
        hidden[0].copy_(state[0])
        hidden_operand = call.operand((steps + 1) * batch, call.units)
        cells = None
        if name == "lstm":
            cells = SHELF.borrow(steps + 1, batch, call.units, like=hidden)
            cells[0].copy_(state[1])
        saved = None
        if saves and _SAVED[name]:
            saved = SHELF.borrow(steps, batch, _SAVED[name] * call.units, like=hidden)
        bias_hn = None
        if name == "gru" and parameters.bias_hh is not None:
            bias_hn = parameters.bias_hh[2 * call.units :].contiguous()
        layer.bias_hn = library.pointer(bias_hn)
        layer.ids = library.pointer(ids)
        layer.projected = library.pointer(projected)
        layer.hidden = library.pointer(hidden)
        layer.hidden_operand = library.pointer(hidden_operand)
        layer.cells = library.pointer(cells)
        layer.saved = library.pointer(saved)
        call.library.recurra_layer_forward(byref(layer))
        del memory
        ctx.call, ctx.name, ctx.dtype, ctx.scale = call, name, dtype, scale
        ctx.save_for_backward(hidden, cells, saved, inputs, *parameters, *state)
        final = [hidden[-1].clone()] + ([] if cells is None else [cells[-1].clone()])
        return (hidden[1:], *final)

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor, *grad_final: Tensor) -> tuple[Any, ...]:
        hidden, cells, saved, inputs, *rest = ctx.saved_tensors
        split = len(LayerParameters._fields)
        parameters, state = LayerParameters(*rest[:split]), tuple(rest[split:])
        if torch.is_grad_enabled():
            grads = (grad_outputs, *grad_final)
            return (None, None, None, *backward_with_graph(ctx, inputs, parameters, state, grads))
        call = ctx.call
        steps, batch = inputs.shape[:2]
        assert parameters.weight_hh is not None
        weight_hh = parameters.weight_hh.contiguous()
        layer, memory = call.layer(steps, weight_hh, ctx.scale)
        width = call.num_deltas * call.units
        grad_outputs = grad_outputs.contiguous()
        grad_final = tuple(g.contiguous() for g in grad_final)
        rounded = call.operand(steps * batch, width)
        deltas = None
        if rounded is None or not inputs.is_floating_point():
            deltas = SHELF.borrow(steps * batch, width, like=hidden)
        grad_bias = hidden.new_empty(width)
        initial = tuple(torch.empty_like(g) for g in grad_final)
        layer.hidden = library.pointer(hidden)
        layer.cells = library.pointer(cells)
        layer.saved = library.pointer(saved)
        layer.grad_outputs = library.pointer(grad_outputs)
        layer.grad_hidden = library.pointer(grad_final[0])
        layer.grad_cells = library.pointer(grad_final[1]) if len(grad_final) > 1 else None
        layer.deltas = library.pointer(deltas)
        layer.delta_operand = library.pointer(rounded)
        layer.grad_bias = library.pointer(grad_bias)
        layer.grad_initial = library.pointer(initial[0])
        layer.grad_initial_cells = library.pointer(initial[1]) if len(initial) > 1 else None
        call.library.recurra_layer_backward(byref(layer))
        del memory
        before = hidden[:-1].flatten(0, 1)
        gradients = _parameter_gradients(
            call,
            inputs,
            parameters,
            deltas,
            rounded,
            before,
            grad_bias,
            ctx.needs_input_grad[3],
        )
        return (None, None, None, *gradients, *initial)


def _project(
    inputs: Tensor, parameters: LayerParameters, dtype: torch.dtype, name: str
) -> tuple[Tensor, Tensor | None]:
    """x_t W_ih' and the biases that may be added beforehand, with the ids that name its rows.

    Numbers give (T, B, G*H) and no ids; ids give the table of all rows, (V, G*H).
    """
    weight, bias = parameters.weight_ih, parameters.bias_ih
    if bias is not None and parameters.bias_hh is not None:
        folded = parameters.bias_hh
        if name == "gru":
            # The third part of b_hh belongs inside, where r multiplies it.
            folded = folded.clone()
            folded[2 * len(folded) // 3 :] = 0
        bias = bias + folded
    if not inputs.is_floating_point():
        table = SHELF.borrow(weight.shape[1], weight.shape[0], like=weight)
        if bias is None:
            table.copy_(weight.t())
        else:
            torch.add(weight.t(), bias, out=table)
        ids = inputs.long().contiguous()
        check_ids(ids, len(table))
        return table, ids
    projected = SHELF.borrow(*inputs.shape[:2], weight.shape[0], like=weight)
    rows, flat = projected.flatten(0, 1), inputs.flatten(0, 1)
    if dtype == weight.dtype and bias is not None:
        torch.addmm(bias, flat, weight.t(), out=rows)
        return projected, None
    rows.copy_(torch.mm(flat.to(dtype), weight.t().to(dtype)))
    if bias is not None:
        rows.add_(bias)
    return projected, None


def _parameter_gradients(
    call: _Call,
    inputs: Tensor,
    parameters: LayerParameters,
    deltas: Tensor | None,
    rounded: Tensor | None,
    before: Tensor,
    grad_bias: Tensor,
    needs_inputs: bool,
) -> list[Tensor | None]:
    """Gradients of the inputs and of each parameter, in the order of `LayerParameters`."""
    weight, units = parameters.weight_ih, call.units
    width = weight.shape[0]
    operand = deltas if rounded is None else rounded
    assert operand is not None
    grad_inputs = None
    if inputs.is_floating_point():
        flat = inputs.flatten(0, 1).contiguous()
        grad_weight_ih = weight.new_empty(weight.shape)
        gradient_product(call.kind, operand[:, :width], flat, grad_weight_ih)
        if needs_inputs:
            grad_inputs = torch.mm(operand[:, :width], weight.to(operand.dtype)).to(weight.dtype)
            grad_inputs = grad_inputs.view_as(inputs)
    else:
        assert deltas is not None
        table = deltas.new_zeros(weight.shape[1], width)
        ids = inputs.long().contiguous()
        call.library.recurra_add_rows(
            library.threads(),
            len(deltas),
            width,
            deltas.shape[1],
            ids.data_ptr(),
            deltas.data_ptr(),
            table.data_ptr(),
        )
        grad_weight_ih = table.t()
    assert parameters.weight_hh is not None
    grad_weight_hh = weight.new_empty(parameters.weight_hh.shape)
    if call.name == "gru":
        gradient_product(call.kind, operand[:, : 2 * units], before, grad_weight_hh[: 2 * units])
        gradient_product(
            call.kind, operand[:, 3 * units : 4 * units], before, grad_weight_hh[2 * units :]
        )
    else:
        gradient_product(call.kind, operand[:, :width], before, grad_weight_hh)
    grad_bias_ih = grad_bias_hh = None
    if parameters.bias_ih is not None:
        grad_bias_ih = grad_bias[:width]
        if call.name == "gru":
            grad_bias_hh = torch.cat([grad_bias[: 2 * units], grad_bias[3 * units :]])
        else:
            grad_bias_hh = grad_bias.clone()
    return [grad_inputs, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, None]
