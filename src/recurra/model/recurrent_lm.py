"""`RecurrentLM`: maps token ids and a state to logits and a state.

Embedding or one-hot input, stacked recurrent layers, and one linear output layer. The state is an
argument and a result of every call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from recurra.config import ModelConfig
from recurra.io.tensors import TensorSpec
from recurra.kernels import library
from recurra.model import output_layer
from recurra.model.residual import BlockParameters, block_shapes, run_blocks
from recurra.recurrence.backends import Requirements, find_backend
from recurra.recurrence.backends.flat_weights import flatten_weights
from recurra.recurrence.cells import NUM_OF_TORCH, LayerParameters, State, find_cell
from recurra.recurrence.dropout import NO_DROPOUT, Dropout, Rows, Zoneout
from recurra.recurrence.layer import choose_backend, run_stack
from recurra.recurrence.precision import Precision, find_precision

_LAYER_NAMES = LayerParameters._fields[:NUM_OF_TORCH]


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a `RecurrentLM`, in their order."""
    cell = find_cell(config.cell)
    vocab, hidden, width = config.vocab_size, config.hidden_size, config.embedding_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab, width)} if width else {}
    gates = cell.num_gates * hidden
    for layer in range(config.num_layers):
        inputs = hidden if layer else width or vocab
        shapes[f"weight_ih_l{layer}"] = (gates, inputs)
        shapes[f"bias_ih_l{layer}"] = (gates,)
        if cell.reads_state:
            shapes[f"weight_hh_l{layer}"] = (gates, hidden)
            shapes[f"bias_hh_l{layer}"] = (gates,)
        extra = cell.extra_shapes(hidden, inputs)
        if config.residual:
            extra |= block_shapes(hidden)
        shapes |= {f"{name}_l{layer}": shape for name, shape in extra.items()}
    if config.residual:
        shapes["final_norm"] = (hidden,)
    if not config.tie_weights:
        shapes["head_weight"] = (vocab, hidden)
    return shapes | {"head_bias": (vocab,)}


def parameter_specs(config: ModelConfig) -> dict[str, TensorSpec]:
    """Return dtype and shape of each parameter in a file, without allocating any."""
    shapes = parameter_shapes(config)
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


class RecurrentLM(nn.Module):
    """A recurrent language model.

    The parameters of the recurrent layers have the names of torch.nn: `weight_ih_l0` (G*H, I),
    `weight_hh_l0` (G*H, H), `bias_ih_l0` and `bias_hh_l0` (G*H,), then `weight_ih_l1` and so on.
    `embedding` (V, E) exists unless the input is one-hot. Residual blocks add `BlockParameters` and
    `final_norm`. The output layer has `head_weight` (V, H), unless it is tied to the embedding, and
    `head_bias` (V,).

    Args:
        config: sizes, cell, backend, precision and initialization.

    Examples:
        >>> import torch
        >>> from recurra.config import ModelConfig
        >>> from recurra.model import RecurrentLM
        >>> model = RecurrentLM(ModelConfig(cell="lstm", hidden_size=16, vocab_size=50))
        >>> logits, (h, c) = model(torch.randint(50, (2, 7)))
        >>> logits.shape, h.shape
        (torch.Size([2, 7, 50]), torch.Size([1, 2, 16]))
    """

    embedding: nn.Parameter
    head_weight: nn.Parameter
    head_bias: nn.Parameter
    final_norm: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.cell = config, find_cell(config.cell)
        for name, shape in parameter_shapes(config).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.head_bias.device

    @property
    def num_parameters(self) -> int:
        """The number of trainable values."""
        return sum(p.numel() for p in self.parameters())

    @property
    def backend(self) -> str:
        """The backend of the recurrent layers, with `auto` resolved."""
        return self.backend_for(1.0)

    def backend_for(self, recurrent_gradient_scale: float) -> str:
        """Return the backend for a gradient scale, see `layer.run`."""
        if self.config.backend != "auto":
            return self.config.backend
        return choose_backend(self._requirements(recurrent_gradient_scale))

    def _requirements(self, recurrent_gradient_scale: float = 1.0) -> Requirements:
        return Requirements(
            self.cell,
            self.device,
            self.head_bias.dtype,
            recurrent_gradient_scale,
            has_zoneout=self.config.zoneout > 0.0,
            product_dtype=self.product_dtype,
        )

    def compiled_unsupported(self) -> str | None:
        """Return why the compiled kernels cannot compute the whole model, or None if they can.

        Builds the kernels if nothing else prevents their use; see `library.is_available`.
        """
        config = self.config
        if config.backend not in ("auto", "native"):
            return f"the backend is set to {config.backend}"
        if (reason := find_backend("native").unsupported(self._requirements())) is not None:
            return reason
        if not self.cell.reads_state:
            return f"the compiled step needs a cell whose gates read the state, not {config.cell}"
        if config.residual:
            return "the compiled kernels have no residual blocks"
        for name, parameter in self.named_parameters():
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                return f"{name} is {parameter.dtype} on {parameter.device}, not fp32 on the CPU"
            if not parameter.is_contiguous():
                return f"{name} is not contiguous"
        return library.unavailable()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the weights by `config.init`, from torch's global generator."""
        bound = 1.0 / math.sqrt(self.config.hidden_size)
        extra = self.cell.extra_shapes(self.config.hidden_size, 1)
        for name, parameter in self.named_parameters():
            if (own := name.rpartition("_l")[0]) in extra:
                self.cell.initialize_extra(own, parameter)
            elif own.endswith("norm") or name == "final_norm":
                parameter.fill_(1.0)
            elif self.config.init == "normal":
                if parameter.dim() == 1:
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, 0.01)
            elif name == "embedding":
                parameter.normal_(0.0, 1.0 if not self.config.tie_weights else bound)
            elif self.config.init == "orthogonal" and name.startswith("weight_hh"):
                for gate in torch.split(parameter, self.config.hidden_size):
                    nn.init.orthogonal_(gate)
            else:
                parameter.uniform_(-bound, bound)
        for layer in range(self.config.num_layers):
            self._set_gate_biases(layer)

    def _set_gate_biases(self, layer: int) -> None:
        """Apply `forget_bias` and `chrono` to the biases of a layer."""
        units, config = self.config.hidden_size, self.config
        forget = slice(units, 2 * units)
        if config.forget_bias:
            getattr(self, f"bias_hh_l{layer}")[forget] += config.forget_bias
        if config.chrono:
            spans = torch.empty(units).uniform_(1.0, config.chrono - 1.0).log()
            getattr(self, f"bias_ih_l{layer}")[: 2 * units] = 0.0
            getattr(self, f"bias_hh_l{layer}")[: 2 * units] = torch.cat([-spans, spans])

    def layers(self) -> list[LayerParameters]:
        """Return the parameters of each recurrent layer, the lowest first."""
        return [self._layer(index) for index in range(self.config.num_layers)]

    def _block(self, index: int) -> BlockParameters:
        return BlockParameters._make(
            getattr(self, f"{name}_l{index}") for name in BlockParameters._fields
        )

    def _layer(self, index: int) -> LayerParameters:
        config = self.config
        shapes = self.cell.extra_shapes(config.hidden_size, 1)
        of_torch = (getattr(self, f"{name}_l{index}", None) for name in _LAYER_NAMES)
        extra = tuple(getattr(self, f"{name}_l{index}") for name in shapes)
        return LayerParameters.from_torch(of_torch)._replace(extra=extra or None)

    def zero_state(self, batch_size: int) -> State:
        """Return the state before the first token: (h,) or (h, c), each (L, B, H); or ()."""
        shape = (self.config.num_layers, batch_size, self.config.hidden_size)
        return tuple(self.head_bias.new_zeros(shape) for _ in range(self.cell.num_states))

    def hidden(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        recurrent_gradient_scale: float = 1.0,
        rows: Rows | None = None,
    ) -> tuple[Tensor, State]:
        """Return the outputs of the top layer, time first.

        Args:
            ids: (B, T) int64.
            state: in the form of `zero_state`; None is zero.
            recurrent_gradient_scale: see `layer.run`.
            rows: see `layer.run_stack`.

        Returns:
            (T, B, H), with dropout in training, and the state after the last step.
        """
        inputs = ids.t()
        if self.config.embedding_size:
            inputs = nn.functional.embedding(inputs, self.embedding)
        options: dict[str, Any] = {
            "dropout": self.dropout,
            "rows": rows,
            "precision": self.precision,
            "recurrent_gradient_scale": recurrent_gradient_scale,
        }
        if self.config.zoneout:
            options["zoneout"] = Zoneout(self.config.zoneout, self.training, rows)
        cell, backend, layers = self.config.cell, self.config.backend, self.layers()
        if not self.config.residual:
            return run_stack(cell, inputs, state or None, layers, backend, **options)
        blocks = [self._block(index) for index in range(len(layers))]
        return run_blocks(
            cell, inputs, state or None, layers, blocks, self.final_norm, backend, **options
        )

    @property
    def dropout(self) -> Dropout:
        """The dropout probabilities; all zero in evaluation mode."""
        config = self.config
        if not self.training:
            return NO_DROPOUT
        return Dropout(
            config.dropout, config.output_dropout, config.locked_dropout, config.weight_dropout
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output layer: (..., H) to (..., V)."""
        with self.precision.products(self.device):
            return output_layer.logits(
                hidden, self.output_weight, self.head_bias, self.product_dtype
            )

    @property
    def output_weight(self) -> Tensor:
        """The weight of the output layer, (V, H)."""
        return self.embedding if self.config.tie_weights else self.head_weight

    @property
    def precision(self) -> Precision:
        """The precision of matrix products."""
        return find_precision(self.config.precision)

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of the operands of products."""
        return self.precision.product_dtype(self.head_bias.dtype)

    def flatten_weights(self) -> None:
        """Make the weights of the recurrent layers views of the buffers that cuDNN reads.

        An engine for CUDA calls this method before its first step. Otherwise, the weights would be
        copied to such a buffer in every step. The parameters remain the same objects with the same
        values. The method does nothing on other devices, in bf16 and fp16, in which the weights are
        rounded in every step, and if it was called before.
        """
        if self.cell.torch_kernel is None or self.product_dtype != self.head_bias.dtype:
            return
        layers = self.layers()
        is_one_call = self.config.dropout == 0.0 and not self.config.residual
        for group in [layers] if is_one_call else [[layer] for layer in layers]:
            flatten_weights(self.cell, group)

    def nats(
        self, ids: Tensor, targets: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Return the cross-entropy of each target, without gradients.

        Only one tile of logits per thread is kept in memory. `has_blocked_output` must be true. See
        `loss` for the arguments.

        Returns:
            (B, T) float64, in nats, and the state after the last token.
        """
        hidden, state = self.hidden(ids, state)
        nats = output_layer.compiled_nats(
            hidden.flatten(0, 1),
            self.output_weight,
            self.head_bias,
            targets.t().flatten(),
            self.product_dtype,
        )
        return nats.view(hidden.shape[:2]).t(), state

    @property
    def has_blocked_output(self) -> bool:
        """Whether the compiled kernels compute the loss without all logits in memory."""
        return output_layer.is_large(self.config.vocab_size) and self._has_compiled_output()

    def _has_compiled_output(self, *hidden: Tensor) -> bool:
        tensors = (*hidden, self.output_weight, self.head_bias)
        return self.backend == "native" and all(t.dtype == torch.float32 for t in tensors)

    def initial_logits(self, batch_size: int = 1) -> Tensor:
        """Return the logits of the first token, (B, V): the output layer applied to zeros."""
        return self.logits(self.head_bias.new_zeros(batch_size, self.config.hidden_size))

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits of the next token after each token of `ids`.

        Args:
            ids: (B, T) int64, T >= 1.
            state: the state after the previous tokens, as returned earlier; None is zero.

        Returns:
            Logits (B, T, V) and the state after the last token.
        """
        hidden, state = self.hidden(ids, state)
        return self.logits(hidden).transpose(0, 1), state

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        recurrent_gradient_scale: float = 1.0,
        rows: Rows | None = None,
    ) -> tuple[Tensor, State]:
        """Return the mean cross-entropy in nats per token, and the state after the last token.

        Args:
            ids, targets: (B, T) int64; `targets[b, t]` is the token after `ids[b, t]`.
            state: as in `forward`.
            recurrent_gradient_scale: see `layer.run`.
            rows: see `layer.run_stack`.
        """
        hidden, state = self.hidden(
            ids, state, recurrent_gradient_scale=recurrent_gradient_scale, rows=rows
        )
        cross_entropy = (
            output_layer.compiled_cross_entropy
            if self._has_compiled_output(hidden)
            else output_layer.cross_entropy
        )
        with self.precision.products(self.device):
            loss = cross_entropy(
                hidden.flatten(0, 1),
                self.output_weight,
                self.head_bias,
                targets.t().flatten(),
                self.product_dtype,
            )
        return loss, state
