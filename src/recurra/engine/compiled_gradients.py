"""Loss and gradients of a model by the compiled kernels, without autograd.

For a `RecurrentLM` the operations of the forward pass, the loss and the backward pass are known in
advance. They are recorded once, with persistent buffers, and replayed while only the values of the
tensors change.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.kernels.buffers import PersistentBuffers
from recurra.kernels.matmul_selection import matmul_kernel
from recurra.kernels.products import (
    add_rows,
    apply_mask,
    as_operand,
    check_ids,
    dense_product,
    gradient_product,
)
from recurra.kernels.recorder import Program
from recurra.model.output_layer import OutputGradients, OutputPasses
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.backends.native_passes import LayerPasses, Trace
from recurra.recurrence.cells import LayerParameters, State, find_cell
from recurra.recurrence.dropout import fill_mask


class CompiledGradients:
    """Loss and gradients of one model by the compiled kernels.

    Args:
        model: a model for which `unsupported` returns None.
    """

    @staticmethod
    def unsupported(model: RecurrentLM) -> str | None:
        """Return why the compiled kernels cannot compute the gradients, or None if they can."""
        if (reason := model.compiled_unsupported()) is not None:
            return reason
        if not all(p.requires_grad for p in model.parameters()):
            return "some parameters are frozen"
        return None

    def __init__(self, model: RecurrentLM) -> None:
        self.model = model
        self._parameters = list(model.parameters())
        self._layer_buffers = [PersistentBuffers() for _ in range(model.config.num_layers)]
        self._buffers = PersistentBuffers()
        self._recorded_for: Hashable = None
        self._recorded: _RecordedPass

    @torch.no_grad()
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
            ids, targets: (B, T) integers; `targets[b, t]` follows `ids[b, t]`.
            state: the state before the batch, each tensor (L, B, H); None is zero.
            recurrent_gradient_scale: multiplies every gradient that passes from one step to the
                step before.
            weight: multiplies the gradients.

        Returns:
            The mean loss in nats per token, without the weight, and the final state as new tensors.

        Raises:
            ConfigError: the shapes of ids, targets and state do not match.
            IndexError: an id or a target is not in the vocabulary.
        """
        self._allocate_gradients()
        inputs = self._copy_inputs(ids, targets, state)
        key = self._recording_key(ids, recurrent_gradient_scale)
        if key == self._recorded_for:
            self._recorded.program.run()
        else:
            self._recorded_for = None
            self._recorded = _RecordedPass(
                self.model, recurrent_gradient_scale, self._layer_buffers, self._buffers
            )
            self._recorded.record(*inputs)
            self._recorded_for = key
        if weight != 1.0:
            torch._foreach_mul_(_gradients(self._parameters), weight)
        return float(self._recorded.loss), _final_state(self._recorded.traces)

    def _allocate_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None or not parameter.grad.is_contiguous():
                parameter.grad = torch.empty_like(parameter)

    def _copy_inputs(
        self, ids: Tensor, targets: Tensor, state: State | None
    ) -> tuple[Tensor, Tensor, State]:
        """Copy the inputs to the buffers of the recorded calls; ids and targets become (T, B)."""
        batch, steps = ids.shape
        if targets.shape != ids.shape:
            raise ConfigError(
                f"targets have shape {tuple(targets.shape)} and must have the shape of ids,"
                f" {tuple(ids.shape)}"
            )
        copied_ids, copied_targets = (
            self._buffers.take(name, steps, batch, like=_IDS).copy_(tokens.t())
            for name, tokens in (("ids", ids), ("targets", targets))
        )
        return copied_ids, copied_targets, self._copy_state(batch, state)

    def _copy_state(self, batch: int, state: State | None) -> State:
        config = self.model.config
        shape = (config.num_layers, batch, config.hidden_size)
        buffers = tuple(
            self._buffers.take(f"state {index}", *shape, like=self.model.head_bias)
            for index in range(find_cell(config.cell).num_states)
        )
        if not state:
            return tuple(buffer.zero_() for buffer in buffers)
        if [part.shape for part in state] != [shape] * len(buffers):
            raise ConfigError(
                f"the state has shapes {[tuple(part.shape) for part in state]}, but should have"
                f" {[shape] * len(buffers)}"
            )
        return tuple(buffer.copy_(part) for buffer, part in zip(buffers, state, strict=True))

    def _recording_key(self, ids: Tensor, scale: float) -> Hashable:
        """Return everything that the recorded calls depend on besides the values of tensors."""
        addresses = [
            (p.data_ptr(), g.data_ptr()) for p in self._parameters if (g := p.grad) is not None
        ]
        return (ids.shape, scale, self.model.training, library.threads(), *addresses)


_IDS = torch.empty(0, dtype=torch.int64)


class _RecordedPass:
    """A forward and a backward pass, recorded as a program.

    If the vocabulary has at most as many tokens as the batch, the embedding is multiplied with the
    first layer's input weight once for all tokens: the product has V columns instead of T*B.

    Attributes:
        program: the recorded calls, which write loss, traces and gradients.
        loss: the mean loss in nats per token, without dimensions.
        traces: the trace of each layer.

    Args:
        model: the model.
        recurrent_gradient_scale: as in `CompiledGradients.compute`.
        layer_buffers: the buffers of each layer.
        buffers: all other buffers.
    """

    loss: Tensor

    def __init__(
        self,
        model: RecurrentLM,
        recurrent_gradient_scale: float,
        layer_buffers: list[PersistentBuffers],
        buffers: PersistentBuffers,
    ) -> None:
        self.program = Program()
        self.traces: list[Trace] = []
        self._model, self._buffers, self._do = model, buffers, self.program.do
        self._kind, self._layers = matmul_kernel(model.product_dtype), model.layers()
        self._passes = [
            LayerPasses(
                model.config.cell,
                model.product_dtype,
                recurrent_gradient_scale,
                layer,
                layer,
                self._do,
            )
            for layer in layer_buffers
        ]
        self._inputs: list[Tensor] = []
        self._masks: list[Tensor | None] = []
        self._weight_masks: list[Tensor] = []
        self._table: Tensor | None = None

    def record(self, ids: Tensor, targets: Tensor, state: State) -> None:
        """Execute both passes and record the calls.

        Args:
            ids, targets: (T, B) int64.
            state: the state before the batch, each tensor (L, B, H).
        """
        hidden = self._forward(ids, state)
        self._backward(ids, self._output(hidden, targets.flatten()))

    def _forward(self, ids: Tensor, state: State) -> Tensor:
        """Return the outputs of the top layer after dropout, (T, B, H)."""
        dropout = self._model.dropout
        if dropout.weight > 0.0:
            self._drop_weights(dropout.weight)
        inputs = self._first_inputs(ids)
        for index, passes in enumerate(self._passes):
            self._inputs.append(inputs)
            initial = tuple(part[index] for part in state)
            self.traces.append(passes.forward(inputs, initial, self._layers[index], saves=True))
            is_top = index == len(self._passes) - 1
            probability = dropout.output if is_top else dropout.between
            inputs = self._drop(self.traces[-1].hidden[1:], probability)
        return inputs

    def _output(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss and the gradients of the output layer.

        Returns:
            The gradient of the loss with respect to `hidden`, (T, B, H).
        """
        output = OutputPasses(self._model.product_dtype, self._buffers, self._buffers, self._do)
        weight, bias, flat = self._model.output_weight, self._model.head_bias, hidden.flatten(0, 1)
        grad_hidden = self._take("grad hidden", *hidden.shape)
        gradients = OutputGradients(grad_hidden.flatten(0, 1), *_gradients([weight, bias]))
        self.loss = output.differentiate(flat, weight, bias, targets, gradients)
        return grad_hidden

    def _backward(self, ids: Tensor, grad_outputs: Tensor) -> None:
        zeros = self._take("zeros", *grad_outputs.shape[1:])
        self._do(zeros.zero_)
        grad: Tensor | None = grad_outputs
        for index in reversed(range(len(self._passes))):
            assert grad is not None
            if (mask := self._masks[index]) is not None:
                self._do(apply_mask, grad, mask, grad)
            trace = self.traces[index]
            grad, _ = self._passes[index].backward(
                trace,
                self._inputs[index],
                self._layers[index],
                grad,
                (zeros,) * (2 if trace.cells is not None else 1),
                self._layer_gradients(index),
                needs_inputs=self._inputs[index].is_floating_point(),
            )
        for parameters, mask in zip(self._model.layers(), self._weight_masks, strict=False):
            assert parameters.weight_hh is not None
            (gradient,) = _gradients([parameters.weight_hh])
            self._do(apply_mask, gradient, mask, gradient)
        if self._model.config.embedding_size:
            self._write_embedding_gradients(ids, grad)

    def _drop_weights(self, probability: float) -> None:
        for index, layer in enumerate(self._layers):
            assert layer.weight_hh is not None
            mask = self._take(f"weight mask {index}", *layer.weight_hh.shape)
            dropped = self._take(f"dropped weight {index}", *layer.weight_hh.shape)
            self._do(fill_mask, mask, probability)
            self._do(apply_mask, layer.weight_hh, mask, dropped)
            self._layers[index] = layer._replace(weight_hh=dropped)
            self._weight_masks.append(mask)

    def _first_inputs(self, ids: Tensor) -> Tensor:
        model, config = self._model, self._model.config
        if not config.embedding_size:
            return ids
        if config.vocab_size > ids.numel():
            self._do(check_ids, ids, config.vocab_size)
            inputs = self._take("embedded", *ids.shape, config.embedding_size)
            self._do(
                torch.index_select, model.embedding, 0, ids.flatten(), out=inputs.flatten(0, 1)
            )
            return inputs
        weight = self._layers[0].weight_ih
        self._table = self._take("table", len(weight), config.vocab_size)
        self._multiply(weight, model.embedding.t(), self._table)
        self._layers[0] = self._layers[0]._replace(weight_ih=self._table)
        return ids

    def _drop(self, outputs: Tensor, probability: float) -> Tensor:
        if probability == 0.0:
            self._masks.append(None)
            return outputs
        layer, (steps, batch, units) = len(self._masks), outputs.shape
        shape = self._model.dropout.mask_shape(steps, batch, units)
        mask = self._take(f"mask {layer}", *shape)
        dropped = self._take(f"dropped {layer}", *outputs.shape)
        self._masks.append(mask)
        self._do(fill_mask, mask, probability)
        self._do(apply_mask, outputs, mask, dropped)
        return dropped

    def _layer_gradients(self, index: int) -> LayerParameters:
        parameters = self._model.layers()[index]
        gradients = LayerParameters.from_torch(
            None if p is None else p.grad for p in parameters.of_torch
        )
        if index == 0 and self._table is not None:
            gradients = gradients._replace(weight_ih=self._grad_table(self._table))
        return gradients

    def _write_embedding_gradients(self, ids: Tensor, grad_inputs: Tensor | None) -> None:
        model, weight = self._model, self._model.layers()[0].weight_ih
        grad_embedding, grad_weight = _gradients([model.embedding, weight])
        if self._table is None:
            assert grad_inputs is not None
            # With tied weights, `grad_embedding` already holds the gradient from the output layer.
            clears = not model.config.tie_weights
            self._do(add_rows, ids, grad_inputs.flatten(0, 1), grad_embedding, clears=clears)
            return
        grad_table = self._grad_table(self._table)
        self._multiply(grad_table, model.embedding, grad_weight)
        input_part = self._take("grad embedding", *grad_embedding.shape)
        operand = as_operand(self._kind, grad_table, self._buffers, self._do)
        gradient_product(self._kind, operand, weight, input_part, self._buffers, self._do)
        # With tied weights, `grad_embedding` already holds the gradient from the output layer.
        self._do(
            grad_embedding.add_ if model.config.tie_weights else grad_embedding.copy_, input_part
        )

    def _grad_table(self, table: Tensor) -> Tensor:
        return self._take("grad table", *table.shape)

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        dense_product(self._kind, left, right, out, self._buffers, self._do)

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._buffers.take(name, *shape, like=self._model.head_bias)


def _final_state(traces: list[Trace]) -> State:
    hidden = [trace.hidden[-1] for trace in traces]
    cells = [trace.cells[-1] for trace in traces if trace.cells is not None]
    return tuple(torch.stack(parts) for parts in (hidden, cells) if parts)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert len(gradients) == len(parameters)
    return gradients
