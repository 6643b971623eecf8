"""Recurrent cells: one time step each, written as its equations.

Each file has the equations of a cell or of a family of cells, and their time loops. `cell.py` and
`time_loop.py` define the interfaces; `config/cells.py` lists the cells.
"""

from __future__ import annotations

from importlib import import_module

from recurra.config.cells import CELL_TRAITS, cell_traits
from recurra.recurrence.cells.cell import (
    NUM_OF_TORCH,
    Cell,
    LayerParameters,
    State,
    TorchKernel,
    check_shapes,
)
from recurra.recurrence.cells.linear import LinearCell

__all__ = [
    "CELLS",
    "NUM_OF_TORCH",
    "Cell",
    "LayerParameters",
    "LinearCell",
    "State",
    "TorchKernel",
    "check_shapes",
    "find_cell",
]

CELLS: dict[str, Cell] = {}
"""The cells by name; those that are registered later are added when they are first used."""


def find_cell(name: str) -> Cell:
    """Return the cell of this name.

    Raises:
        ConfigError: the name is unknown; the message lists the available names.
    """
    if name not in CELLS:
        traits = cell_traits(name)
        module, _, class_name = traits.implementation.partition(":")
        CELLS[name] = getattr(import_module(module), class_name)(traits)
    return CELLS[name]


for _name in CELL_TRAITS:
    find_cell(_name)
