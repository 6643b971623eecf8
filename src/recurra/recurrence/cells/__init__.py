"""One time step of every cell, written as its equations.

Read `cell.py` first: what a cell is. `book.py` has those of the book, `linear.py` those whose gates
read no state, `variants.py` the LSTM with changes.
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
