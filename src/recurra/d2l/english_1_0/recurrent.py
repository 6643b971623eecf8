"""Recurrent layers: from their equations (RNNScratch, LSTMScratch, GRUScratch), and of recurra.nn.

See sections 9.5, 9.6, 10.1, 10.2 and 10.3. Inputs are (steps, batch, num_inputs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recurra import nn as recurra_nn
from recurra.d2l.english_1_0.modules import Module


class _Scratch(Module):
    """Common part of the layers that are written as equations; parameters are drawn here."""

    num_inputs: int
    num_hiddens: int
    sigma: float

    def _gate(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """Return W_x (num_inputs, num_hiddens), W_h (num_hiddens, num_hiddens) and a zero bias."""
        shapes = (self.num_inputs, self.num_hiddens), (self.num_hiddens, self.num_hiddens)
        weight_x, weight_h = (nn.Parameter(torch.randn(shape) * self.sigma) for shape in shapes)
        return weight_x, weight_h, nn.Parameter(torch.zeros(self.num_hiddens))

    def _zeros(self, inputs: Any) -> Tensor:
        """Return the zero state (batch, num_hiddens); `inputs` may be a list of steps."""
        first: Tensor = inputs[0]
        return torch.zeros((first.shape[0], self.num_hiddens), device=first.device)


class RNNScratch(_Scratch):
    """The Elman network H_t = tanh(X_t W_xh + H_{t-1} W_hh + b_h) (section 9.5).

    Args:
        num_inputs: width of the inputs.
        num_hiddens: number of hidden units.
        sigma: standard deviation of the initial weights.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> rnn = d2l.RNNScratch(num_inputs=3, num_hiddens=4)
        >>> outputs, state = rnn(torch.ones(5, 2, 3))
        >>> len(outputs), outputs[0].shape, bool((outputs[-1] == state).all())
        (5, torch.Size([2, 4]), True)
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.W_xh, self.W_hh, self.b_h = self._gate()

    def forward(self, inputs: Any, state: Any = None) -> tuple[list[Tensor], Tensor]:
        """Return the list of the hidden states of all steps, and the last one.

        `state` is a tensor (batch, num_hiddens), or a tuple with this tensor. None is zero.
        """
        if state is None:
            state = self._zeros(inputs)
        elif isinstance(state, (tuple, list)):
            (state,) = state
        outputs = []
        for X in inputs:  # noqa: N806
            state = torch.tanh(X @ self.W_xh + state @ self.W_hh + self.b_h)
            outputs.append(state)
        return outputs, state


class LSTMScratch(_Scratch):
    """Long short-term memory (section 10.1).

    With I, F, O = sigmoid(X_t W_x + H_{t-1} W_h + b), each with its own parameters, and the input
    node N = tanh(X_t W_xc + H_{t-1} W_hc + b_c): C_t = F C_{t-1} + I N, H_t = O tanh(C_t).

    Args:
        num_inputs: width of the inputs.
        num_hiddens: number of hidden units.
        sigma: standard deviation of the initial weights.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> lstm = d2l.LSTMScratch(num_inputs=3, num_hiddens=4)
        >>> outputs, (H, C) = lstm(torch.ones(5, 2, 3))
        >>> len(outputs), H.shape, C.shape
        (5, torch.Size([2, 4]), torch.Size([2, 4]))
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.W_xi, self.W_hi, self.b_i = self._gate()
        self.W_xf, self.W_hf, self.b_f = self._gate()
        self.W_xo, self.W_ho, self.b_o = self._gate()
        self.W_xc, self.W_hc, self.b_c = self._gate()

    def forward(self, inputs: Any, H_C: Any = None) -> tuple[list[Tensor], Any]:  # noqa: N803
        """Return the list of the hidden states of all steps, and the pair (H, C) after the last.

        `H_C` is a pair of tensors (batch, num_hiddens). None is zero.
        """
        hidden, cell = (self._zeros(inputs), self._zeros(inputs)) if H_C is None else H_C
        outputs = []
        for X in inputs:  # noqa: N806
            input_gate = torch.sigmoid(X @ self.W_xi + hidden @ self.W_hi + self.b_i)
            forget_gate = torch.sigmoid(X @ self.W_xf + hidden @ self.W_hf + self.b_f)
            output_gate = torch.sigmoid(X @ self.W_xo + hidden @ self.W_ho + self.b_o)
            node = torch.tanh(X @ self.W_xc + hidden @ self.W_hc + self.b_c)
            cell = forget_gate * cell + input_gate * node
            hidden = output_gate * torch.tanh(cell)
            outputs.append(hidden)
        return outputs, (hidden, cell)


class GRUScratch(_Scratch):
    """Gated recurrent unit (section 10.2).

    With Z, R = sigmoid(X_t W_x + H_{t-1} W_h + b), each with its own parameters, and the candidate
    N = tanh(X_t W_xh + (R H_{t-1}) W_hh + b_h): H_t = Z H_{t-1} + (1 - Z) N. The `GRU` of torch and
    of this package multiplies by R after the product with W_hh instead.

    Args:
        num_inputs: width of the inputs.
        num_hiddens: number of hidden units.
        sigma: standard deviation of the initial weights.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> gru = d2l.GRUScratch(num_inputs=3, num_hiddens=4)
        >>> outputs, H = gru(torch.ones(5, 2, 3))
        >>> len(outputs), H.shape
        (5, torch.Size([2, 4]))
    """

    def __init__(self, num_inputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.W_xz, self.W_hz, self.b_z = self._gate()
        self.W_xr, self.W_hr, self.b_r = self._gate()
        self.W_xh, self.W_hh, self.b_h = self._gate()

    def forward(self, inputs: Any, H: Any = None) -> tuple[list[Tensor], Tensor]:  # noqa: N803
        """Return the list of the hidden states of all steps, and the last one.

        `H` is a tensor (batch, num_hiddens). None is zero.
        """
        hidden: Tensor = self._zeros(inputs) if H is None else H
        outputs = []
        for X in inputs:  # noqa: N806
            update = torch.sigmoid(X @ self.W_xz + hidden @ self.W_hz + self.b_z)
            reset = torch.sigmoid(X @ self.W_xr + hidden @ self.W_hr + self.b_r)
            candidate = torch.tanh(X @ self.W_xh + (reset * hidden) @ self.W_hh + self.b_h)
            hidden = update * hidden + (1 - update) * candidate
            outputs.append(hidden)
        return outputs, hidden


class RNN(Module):
    """The Elman network of `recurra.nn`, which computes what torch.nn.RNN does (section 9.6).

    Args:
        num_inputs: width of the inputs.
        num_hiddens: number of hidden units.

    Attributes:
        rnn: the layer.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> outputs, H = d2l.RNN(num_inputs=3, num_hiddens=4)(torch.ones(5, 2, 3))
        >>> outputs.shape, H.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    num_inputs: int
    num_hiddens: int
    rnn: Any

    def __init__(self, num_inputs: int, num_hiddens: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rnn = recurra_nn.RNN(num_inputs, num_hiddens)

    def forward(self, inputs: Tensor, H: Any = None) -> Any:  # noqa: N803
        """Return the outputs (steps, batch, num_hiddens), and the state of the layer."""
        return self.rnn(inputs, H)


class _StackedLayer(RNN):
    """Base class of the cells that the book stacks: the arguments of `LSTM` and `GRU`."""

    _layer: type[Any]

    def __init__(
        self, num_inputs: int, num_hiddens: int, num_layers: int = 1, dropout: float = 0
    ) -> None:
        Module.__init__(self)
        self.save_hyperparameters()
        self.rnn = self._layer(num_inputs, num_hiddens, num_layers, dropout=dropout)


class LSTM(_StackedLayer):
    """Long short-term memory of `recurra.nn` (section 10.1).

    Args:
        num_inputs: width of the inputs.
        num_hiddens: number of hidden units.
        num_layers: number of layers.
        dropout: probability of dropout between the layers.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> outputs, (H, C) = d2l.LSTM(num_inputs=3, num_hiddens=4)(torch.ones(5, 2, 3))
        >>> outputs.shape, H.shape, C.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), torch.Size([1, 2, 4]))
    """

    _layer = recurra_nn.LSTM

    def forward(self, inputs: Tensor, H_C: Any = None) -> Any:  # noqa: N803
        """Return the outputs (steps, batch, num_hiddens), and the pair (H, C) of the layer."""
        return self.rnn(inputs, H_C)


class GRU(_StackedLayer):
    """Gated recurrent units of `recurra.nn`, in one or several layers (sections 10.2 and 10.3).

    Args:
        num_inputs: width of the inputs.
        num_hiddens: number of hidden units.
        num_layers: number of layers.
        dropout: probability of dropout between the layers.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> gru = d2l.GRU(num_inputs=3, num_hiddens=4, num_layers=2)
        >>> outputs, H = gru(torch.ones(5, 2, 3))
        >>> outputs.shape, H.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    _layer = recurra_nn.GRU
