"""`register_cell`: use a cell that is defined outside the package."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from recurra.config.cells import CELL_TRAITS, CellTraits
from recurra.config.checks import require_new_name
from recurra.errors import ConfigError
from recurra.recurrence.cells import CELLS, Cell, LayerParameters

AnyCell = TypeVar("AnyCell", bound=Cell)

_BUILT_IN = frozenset(CELL_TRAITS)
_ROWS, _UNITS, _INPUTS = 2, 3, 4


def register_cell(
    cell: type[AnyCell], *, name: str, num_gates: int, **traits: Any
) -> type[AnyCell]:
    """Make a cell available as `recurra.train(cell=name)`, in the current process.

    The cell is computed by its `step`, with gradients by autograd, unless it defines faster
    implementations; see `Cell`. One step is computed here to check the shapes. Registering a name
    again replaces the cell, unless it is one of recurra's own. Before a run with the cell is loaded
    or resumed, the cell must be registered.

    Args:
        cell: a subclass of `recurra.Cell`.
        name: the name in `ModelConfig.cell` and in `config.json`: letters, digits, - and _.
        num_gates: number of gates; W_ih has num_gates * H rows.
        traits: the other fields of `config.cells.CellTraits`, which documents them: num_states,
            reads_state, changes_inputs, has_forget_gate, lr_factor.

    Returns:
        The cell.

    Raises:
        ConfigError: the name or a trait is invalid, or `step` fails or returns other shapes than
            (B, H).

    Examples:
        >>> import torch
        >>> import recurra
        >>> class MguCell(recurra.Cell):
        ...     # Minimal gated unit (Zhou et al., 2016); one gate forgets and updates.
        ...     def step(self, projected, state, parameters, dtype):
        ...         (h,) = state
        ...         x_f, x_n = projected.chunk(2, dim=1)
        ...         h_f, h_n = parameters.recurrent_product(h, dtype).chunk(2, dim=1)
        ...         f = torch.sigmoid(x_f + h_f)
        ...         h = (1 - f) * h + f * torch.tanh(x_n + f * h_n)
        ...         return h, (h,)
        >>> _ = recurra.register_cell(MguCell, name="mgu", num_gates=2)
        >>> recurra.train(cell="mgu", hidden_size=8, steps=5)
        LanguageModel(mgu, 1 x 8, char vocabulary of 58, 5,418 parameters)
    """
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        raise ConfigError(f"{cell!r} is not a subclass of recurra.Cell")
    require_new_name("cell", name, _BUILT_IN)
    try:
        row = CellTraits(
            name=name,
            implementation=f"{cell.__module__}:{cell.__qualname__}",
            num_gates=num_gates,
            **traits,
        )
        instance = cell(row)
    except TypeError as error:
        raise ConfigError(f"the cell {name} cannot be registered: {error}") from error
    _check_step(instance)
    CELL_TRAITS[name], CELLS[name] = row, instance
    return cell


def _check_step(cell: Cell) -> None:
    """Compute one step of a small layer, and check the shapes of its results.

    Raises:
        ConfigError: the step fails or returns other shapes.
    """
    gates = cell.num_gates * _UNITS
    recurrent = torch.zeros(gates, _UNITS) if cell.reads_state else None
    extra = cell.extra_shapes(_UNITS, _INPUTS)
    parameters = LayerParameters(
        torch.zeros(gates, _INPUTS),
        recurrent,
        torch.zeros(gates),
        None if recurrent is None else torch.zeros(gates),
        extra=tuple(torch.zeros(shape) for shape in extra.values()) or None,
    )
    inputs = torch.zeros(_ROWS, _INPUTS if cell.traits.changes_inputs else gates)
    state = tuple(torch.zeros(_ROWS, _UNITS) for _ in range(cell.num_states))
    try:
        output, after = cell.step(inputs, state, parameters, torch.float32)
        shapes = [tuple(tensor.shape) for tensor in (output, *after)]
    except Exception as error:
        raise ConfigError(
            f"the step of the cell {cell.name} failed: {str(error) or repr(error)}"
        ) from error
    expected = [(_ROWS, _UNITS)] * (1 + cell.num_states)
    if shapes != expected:
        raise ConfigError(
            f"the step of the cell {cell.name} returned tensors of shapes {shapes} for a batch of"
            f" {_ROWS} and {_UNITS} units; it must return the output and the {cell.num_states}"
            f" tensors of the state, all {expected[0]}"
        )
