"""The book's two language models: from the learner's functions, and around a torch layer.

Sections 8.5 and 8.6 (and chapter 9, which uses the same two for GRU and LSTM). Both read ids
(batch, steps) and give logits (steps * batch, vocab), one row per token, time first. Knows no
text and no training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.errors import ConfigError

Device = torch.device | str | None


def one_hot(x: Tensor, n_class: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ids (n,) of any number type as one-hot rows (n, n_class) (v1)."""
    return functional.one_hot(x.reshape(-1).long(), n_class).to(dtype)


def to_onehot(X: Tensor, n_class: int) -> list[Tensor]:  # noqa: N803
    """Ids (batch, steps) as `steps` one-hot matrices (batch, n_class) (v1)."""
    return [one_hot(column, n_class) for column in X.T]


class RNNModelScratch:
    """A language model made of three functions that the learner writes (section 8.5).

    get_params(vocab_size, num_hiddens, device) -> list of tensors that require gradients;
    init_state(batch_size, num_hiddens, device) -> tuple of tensors;
    forward_fn(inputs (steps, batch, vocab), state, params) -> (logits (steps * batch, vocab),
    state).
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
        """Ids (batch, steps) and a state to (logits (steps * batch, vocab), new state)."""
        inputs = functional.one_hot(X.T.long(), self.vocab_size).to(torch.float32)
        logits, state = self.forward_fn(inputs, state, self.params)
        return logits, state

    def begin_state(self, batch_size: int, device: Device) -> Any:
        """The state before the first token, as the learner's init_state makes it."""
        return self.init_state(batch_size, self.num_hiddens, device)


class RNNModel(nn.Module):
    """An output layer over torch.nn's RNN, GRU or LSTM, or over recurra.nn's (section 8.6).

    Several layers, both directions and `proj_size` work. The state is a tensor
    (layers * directions, batch, hidden), for the LSTM a pair of them; None starts from zeros.

    Raises:
        ConfigError: the layer was made with batch_first=True, or reads another vocabulary size.
    """

    def __init__(self, rnn_layer: nn.RNNBase, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if rnn_layer.batch_first:
            raise ConfigError(
                "RNNModel feeds its layer time first; make the layer without batch_first=True"
            )
        if rnn_layer.input_size != vocab_size:
            raise ConfigError(
                f"the layer reads vectors of {rnn_layer.input_size}, but a one-hot token has"
                f" {vocab_size} entries; make the layer with input_size=len(vocab)"
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
        """Ids (batch, steps) and a state to (logits (steps * batch, vocab), new state).

        Raises:
            ConfigError: an LSTM was given one tensor as its state.
        """
        one_hot_inputs = functional.one_hot(inputs.T.long(), self.vocab_size)
        hiddens, state = self.rnn(
            one_hot_inputs.to(self.linear.weight.dtype), self._fit_state(state)
        )
        return self.linear(hiddens.reshape(-1, hiddens.shape[-1])), state

    def _fit_state(self, state: Any) -> Any:
        # The scratch models keep even a single tensor in a tuple; torch's RNN and GRU want it bare.
        if isinstance(self.rnn, nn.LSTM):
            if isinstance(state, Tensor):
                raise ConfigError(
                    "the state of an LSTM is the pair (H, C), and this is one tensor;"
                    " begin_state makes the pair"
                )
            return state
        return state[0] if isinstance(state, (tuple, list)) and len(state) == 1 else state

    def begin_state(self, device: Device, batch_size: int = 1) -> Tensor | tuple[Tensor, Tensor]:
        """Zeros: one tensor (layers * directions, batch, hidden), for the LSTM the pair (H, C)."""

        def zeros(width: int) -> Tensor:
            depth = self.num_directions * self.rnn.num_layers
            return torch.zeros(
                (depth, batch_size, width), device=device, dtype=self.linear.weight.dtype
            )

        if isinstance(self.rnn, nn.LSTM):
            return zeros(self._output_size), zeros(self.num_hiddens)
        return zeros(self.num_hiddens)
