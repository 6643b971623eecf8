"""Language models of the book (sections 8.5 and 8.6): from functions, and around a torch layer.

Chapter 9 uses both for GRU and LSTM. The inputs are ids (batch, steps) and the outputs are logits
(steps * batch, vocab), one row per token, time first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra import d2l
from recurra.errors import ConfigError

Device = torch.device | str | None


def one_hot(x: Tensor, n_class: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ids (n,) of any numeric type as one-hot vectors (n, n_class) (v1).

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> d2l.one_hot(torch.tensor([0, 2]), 3)
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    return functional.one_hot(x.reshape(-1).long(), n_class).to(dtype)


def to_onehot(X: Tensor, n_class: int) -> list[Tensor]:  # noqa: N803
    """Return ids (batch, steps) as a list of `steps` one-hot matrices (batch, n_class) (v1).

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> matrices = d2l.to_onehot(torch.arange(10).view(2, 5), 10)
        >>> len(matrices), matrices[0].shape
        (5, torch.Size([2, 10]))
    """
    return [d2l.one_hot(column, n_class) for column in X.T]


class RNNModelScratch:
    """Language model that is defined by three functions (section 8.5).

    Args:
        vocab_size: size of the vocabulary.
        num_hiddens: number of hidden units.
        device: device of the parameters.
        get_params: function (vocab_size, num_hiddens, device) that returns a list of tensors that
            require gradients.
        init_state: function (batch_size, num_hiddens, device) that returns a tuple of tensors.
        forward_fn: function (inputs, state, params) that returns (logits, state), with inputs of
            shape (steps, batch, vocab) and logits of shape (steps * batch, vocab).

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> def get_params(vocab_size, num_hiddens, device):
        ...     return [torch.randn(vocab_size, vocab_size, device=device, requires_grad=True)]
        >>> def init_state(batch_size, num_hiddens, device):
        ...     return (torch.zeros(batch_size, num_hiddens, device=device),)
        >>> def bigram(inputs, state, params):
        ...     return (inputs @ params[0]).flatten(0, 1), state
        >>> net = d2l.RNNModelScratch(28, 16, "cpu", get_params, init_state, bigram)
        >>> logits, state = net(torch.zeros(2, 5), net.begin_state(2, "cpu"))
        >>> logits.shape
        torch.Size([10, 28])
    """

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        device: Device,
        get_params: Callable[..., Any],
        init_state: Callable[..., Any],
        forward_fn: Callable[..., Any],
    ) -> None:
        self.vocab_size, self.num_hiddens = vocab_size, num_hiddens
        self.params = get_params(vocab_size, num_hiddens, device)
        self.init_state, self.forward_fn = init_state, forward_fn

    def __call__(self, X: Tensor, state: Any) -> tuple[Tensor, Any]:  # noqa: N803
        """Return (logits, state) of ids (batch, steps); the logits are (steps * batch, vocab)."""
        inputs = functional.one_hot(X.T.long(), self.vocab_size).to(torch.float32)
        logits, state = self.forward_fn(inputs, state, self.params)
        return logits, state

    def begin_state(self, batch_size: int, device: Device) -> Any:
        """Return the initial state from `init_state`."""
        return self.init_state(batch_size, self.num_hiddens, device)


class RNNModel(nn.Module):
    """Language model of an RNN, GRU or LSTM of torch.nn or recurra.nn and an output layer.

    See section 8.6. Stacked layers, bidirectional layers and `proj_size` are supported. The state
    is a tensor (layers * directions, batch, hidden), or a pair of these for the LSTM. None means
    zeros.

    Raises:
        ConfigError: the layer has batch_first=True, or its `input_size` is not `vocab_size`.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> net = d2l.RNNModel(torch.nn.GRU(28, 16), vocab_size=28)
        >>> logits, state = net(torch.zeros(2, 5), net.begin_state("cpu", batch_size=2))
        >>> logits.shape, state.shape
        (torch.Size([10, 28]), torch.Size([1, 2, 16]))
    """

    def __init__(self, rnn_layer: nn.RNNBase, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if rnn_layer.batch_first:
            raise ConfigError("RNNModel requires a layer without batch_first=True")
        if rnn_layer.input_size != vocab_size:
            raise ConfigError(
                f"input_size of the layer is {rnn_layer.input_size}, but the vocabulary has"
                f" {vocab_size} entries; create the layer with input_size=len(vocab)"
            )
        self.rnn = rnn_layer
        self.vocab_size = vocab_size
        self.num_hiddens = rnn_layer.hidden_size
        self.num_directions = 2 if rnn_layer.bidirectional else 1
        self.linear = nn.Linear(self._output_size * self.num_directions, vocab_size)

    @property
    def _output_size(self) -> int:
        return self.rnn.proj_size or self.num_hiddens

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return (logits, state) of ids (batch, steps); the logits are (steps * batch, vocab).

        Raises:
            ConfigError: the layer is an LSTM and the state is a single tensor.
        """
        one_hot_inputs = functional.one_hot(inputs.T.long(), self.vocab_size)
        hiddens, state = self.rnn(
            one_hot_inputs.to(self.linear.weight.dtype), self._fit_state(state)
        )
        return self.linear(hiddens.reshape(-1, hiddens.shape[-1])), state

    def _fit_state(self, state: Any) -> Any:
        # RNNModelScratch uses a tuple even for one tensor; torch's RNN and GRU require a tensor.
        if isinstance(self.rnn, nn.LSTM):
            if isinstance(state, Tensor):
                raise ConfigError(
                    "the state of an LSTM must be a pair (H, C), not a single tensor; begin_state"
                    " returns such a pair"
                )
            return state
        return state[0] if isinstance(state, (tuple, list)) and len(state) == 1 else state

    def begin_state(self, device: Device, batch_size: int = 1) -> Tensor | tuple[Tensor, Tensor]:
        """Return a zero state (layers * directions, batch, hidden); a pair (H, C) for the LSTM."""

        def zeros(width: int) -> Tensor:
            depth = self.num_directions * self.rnn.num_layers
            return torch.zeros(
                (depth, batch_size, width), device=device, dtype=self.linear.weight.dtype
            )

        if isinstance(self.rnn, nn.LSTM):
            return zeros(self._output_size), zeros(self.num_hiddens)
        return zeros(self.num_hiddens)
