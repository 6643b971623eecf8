"""The backends that compute each cell on a GPU."""

from recurra.recurrence.cells import CELLS


def backends_of(cell):
    """Return the backends that compute a cell on a GPU."""
    kind = CELLS[cell]
    found = ["reference"]
    if kind.loop is not None or not kind.reads_state:
        found.append("bptt")
    return found + (["library"] if kind.torch_kernel is not None else [])
