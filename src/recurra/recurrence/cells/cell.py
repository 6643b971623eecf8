"""The definition of a cell: one time step and the parameters that it reads.

A cell has no batch loop, time loop or gradient: `reference.py` repeats `step` through time, and
autograd computes the gradients. The inputs of step t are already projected, x_t W_ih' + b_ih,
because that product does not depend on the past. A cell's time loop with hand-derived gradients and
torch's kernel for it, which faster backends use, are attributes of its class.

Gate order and parameter layout are torch.nn's: i, f, g, o for the LSTM, r, z, n for the GRU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from recurra.config.cells import CellTraits
from recurra.errors import ConfigError
from recurra.recurrence.precision import product

if TYPE_CHECKING:
    from recurra.recurrence.cells.time_loop import TimeLoop

State = tuple[Tensor, ...]
"""The recurrent state of a layer: (h,) or (h, c), each (B, H), or () without a hidden state."""


class LayerParameters(NamedTuple):
    """The parameters of one layer, with the names and shapes of torch.nn.

    `weight_ih` (G*H, I), `weight_hh` (G*H, H), biases (G*H,) or None; `weight_hr` (P, H) only for
    an LSTM with projection, whose `weight_hh` is then (G*H, P). A cell whose gates do not read the
    state has neither `weight_hh` nor `bias_hh`. `extra` has the parameters that only this cell has,
    in the order of its `extra_shapes`, or is None.
    """

    weight_ih: Tensor
    weight_hh: Tensor | None = None
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None
    extra: tuple[Tensor, ...] | None = None

    @property
    def of_torch(self) -> tuple[Tensor | None, ...]:
        """The parameters that the layers of torch.nn have: all but `extra`."""
        return (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr)

    @classmethod
    def from_torch(cls, tensors: Iterable[Tensor | None]) -> Self:
        """Return parameters without `extra`; the inverse of `of_torch`."""
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = tensors
        assert weight_ih is not None
        return cls(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)

    def recurrent_product(self, h: Tensor, dtype: torch.dtype) -> Tensor:
        """Return h W_hh' + b_hh, (B, G*H); the product in `dtype`, the result in h's dtype."""
        assert self.weight_hh is not None
        recurrent = product(h, self.weight_hh, dtype)
        return recurrent if self.bias_hh is None else recurrent + self.bias_hh


NUM_OF_TORCH = len(LayerParameters._fields) - 1


class TorchKernel(NamedTuple):
    """torch's kernel for a cell.

    Attributes:
        function: the function that runs a layer through time, for example `torch.lstm`.
        mode: the `mode` of the layer of torch.nn.
        is_fused_on_cpu: whether oneDNN has a fused kernel for it.
    """

    function: Callable[..., Any]
    mode: str
    is_fused_on_cpu: bool = False


class Cell(ABC):
    """One kind of recurrence.

    Args:
        traits: the row of `config.cells.CELL_TRAITS` that names the class.

    Attributes:
        traits, name, num_gates, num_states, reads_state: as in `CellTraits`.
        loop: the time loops with hand-derived gradients, or None without any.
        torch_kernel: torch's kernel, or None without one.

    Examples:
        >>> import torch
        >>> from recurra.config.cells import CellTraits
        >>> from recurra.recurrence.cells import Cell, LayerParameters
        >>> class ElmanCell(Cell):
        ...     def step(self, projected, state, parameters, dtype):
        ...         h = torch.tanh(projected + parameters.recurrent_product(state[0], dtype))
        ...         return h, (h,)
        >>> traits = CellTraits(name="elman", implementation="my_cells:ElmanCell", num_gates=1)
        >>> parameters = LayerParameters(weight_ih=torch.randn(4, 3), weight_hh=torch.randn(4, 4))
        >>> projected, h = torch.randn(2, 4), torch.zeros(2, 4)
        >>> output, (h,) = ElmanCell(traits).step(projected, (h,), parameters, torch.float32)
        >>> output.shape
        torch.Size([2, 4])
    """

    loop: ClassVar[TimeLoop | None] = None
    torch_kernel: ClassVar[TorchKernel | None] = None

    def __init__(self, traits: CellTraits) -> None:
        self.traits = traits
        self.name = traits.name
        self.num_gates = traits.num_gates
        self.num_states = traits.num_states
        self.reads_state = traits.reads_state

    @abstractmethod
    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        """Compute one step in time.

        Args:
            projected: x_t W_ih' + b_ih, shape (B, G*H); x_t itself, (B, I), for a cell that
                changes its inputs.
            state: the state before the step, `num_states` tensors.
            parameters: the layer's parameters.
            dtype: number format of the matrix products.

        Returns:
            The layer's output at this step, (B, H), and the state after it.
        """

    def extra_shapes(self, units: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the parameters that only this cell has."""
        return {}

    def initialize_extra(self, name: str, parameter: Tensor) -> None:
        """Initialize one of the extra parameters in place, by default with zeros."""
        parameter.zero_()


def check_shapes(cell: Cell, inputs: Tensor, parameters: LayerParameters) -> None:
    """Check that a layer's parameters fit each other and its inputs; kernels do not check.

    Raises:
        ConfigError: they do not fit.
    """
    takes_numbers = inputs.is_floating_point()
    if inputs.dim() != 2 + takes_numbers or inputs.shape[0] < 1:
        raise ConfigError(
            "a layer reads numbers (T, B, I) or ids (T, B) of at least one step, not"
            f" {tuple(inputs.shape)}"
        )
    rows, width = parameters.weight_ih.shape
    units = rows // cell.num_gates
    projection = parameters.weight_hr
    outputs = units if projection is None else len(projection)
    expected = {
        "weight_ih": (cell.num_gates * units, inputs.shape[-1] if takes_numbers else width),
        "weight_hh": (rows, outputs),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
        "weight_hr": (outputs, units),
    }
    found = {name: getattr(parameters, name) for name in expected}
    extra = cell.extra_shapes(units, width)
    if len(parameters.extra or ()) != len(extra):
        raise ConfigError(f"the extra parameters of {cell.name} are {', '.join(extra) or 'none'}")
    found |= zip(extra, parameters.extra or (), strict=True)
    for name, shape in (expected | extra).items():
        parameter = found[name]
        if parameter is not None and tuple(parameter.shape) != shape:
            raise ConfigError(f"{name} of {cell.name} is {tuple(parameter.shape)}, not {shape}")
    if parameters.weight_hh is None and cell.reads_state:
        raise ConfigError(f"{cell.name} needs weight_hh")
    if not takes_numbers and cell.traits.changes_inputs:
        raise ConfigError(f"{cell.name} reads numbers, not ids: it needs an embedding")
