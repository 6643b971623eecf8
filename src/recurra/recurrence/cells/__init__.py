"""Recurrent cells: one time step each, written as its equations.

`cell.py` defines the interface. `book.py` has the cells of the book, `linear.py` those whose gates
do not read the state, and `variants.py` variants of the LSTM.
"""

from __future__ import annotations

from recurra.errors import ConfigError
from recurra.recurrence.cells.book import FeedForwardCell, GruCell, LstmCell, ReluCell, TanhCell
from recurra.recurrence.cells.cell import (
    NUM_OF_TORCH,
    Cell,
    LayerParameters,
    State,
    check_shapes,
)
from recurra.recurrence.cells.linear import (
    LinearCell,
    MinGruCell,
    MinLstmCell,
    RgLruCell,
    SruCell,
)
from recurra.recurrence.cells.variants import LayerNormLstmCell, MogrifierCell

__all__ = [
    "CELLS",
    "NUM_OF_TORCH",
    "Cell",
    "LayerParameters",
    "LinearCell",
    "State",
    "check_shapes",
    "find_cell",
]

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        TanhCell(),
        ReluCell(),
        GruCell(),
        LstmCell(),
        LayerNormLstmCell(),
        MogrifierCell(),
        MinGruCell(),
        MinLstmCell(),
        SruCell(),
        RgLruCell(),
        FeedForwardCell(),
    )
}


def find_cell(name: str) -> Cell:
    """The cell of this name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in CELLS:
        raise ConfigError(f"unknown cell {name!r}; there are {', '.join(CELLS)}")
    return CELLS[name]
