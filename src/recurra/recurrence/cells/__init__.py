"""Recurrent cells: one time step each, written as its equations.

`cell.py` defines the interface. `book.py` has the cells of the book, `linear.py` those whose gates
do not read the state, and `variants.py` variants of the LSTM.
"""

from __future__ import annotations

from recurra.config.cells import CELL_TRAITS, load_class
from recurra.errors import ConfigError
from recurra.recurrence.cells.cell import (
    NUM_OF_TORCH,
    Cell,
    LayerParameters,
    State,
    check_shapes,
)
from recurra.recurrence.cells.linear import LinearCell

__all__ = [
    "NUM_OF_TORCH",
    "Cell",
    "LayerParameters",
    "LinearCell",
    "State",
    "check_shapes",
    "find_cell",
]

_instances: dict[str, Cell] = {}


def find_cell(name: str) -> Cell:
    """Return the cell of this name.

    Raises:
        ConfigError: there is none; the message lists all cells.
    """
    if name not in CELL_TRAITS:
        raise ConfigError(f"unknown cell {name!r}; there are {', '.join(CELL_TRAITS)}")
    if name not in _instances:
        _instances[name] = load_class(CELL_TRAITS[name].equation)()
        assert _instances[name].name == name
    return _instances[name]
