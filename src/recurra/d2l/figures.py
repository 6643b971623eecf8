"""Figures that are updated during training: pyplot's figures, redrawn in a notebook.

A figure is created with pyplot, as in the book, so that `plt.savefig`, `plt.gcf` and `plt.show`
apply to it after the training. In a script, it is updated and not displayed.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import time
from typing import TYPE_CHECKING

from recurra import d2l
from recurra.runtime.interactive import notebook_display

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def has_matplotlib() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def open_figure(
    figsize: tuple[float, float], nrows: int = 1, ncols: int = 1
) -> tuple[Figure, list[Axes]]:
    """Create a figure of pyplot, which becomes the current one, and its Axes, row by row.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, grid = d2l.plt.subplots(nrows, ncols, figsize=figsize, squeeze=False, layout="tight")
    return figure, list(grid.flat)


def is_closed(figure: Figure) -> bool:
    """Return whether the figure was created by pyplot and closed since."""
    number = getattr(figure, "number", None)
    if number is None:
        return False
    # The number of a closed figure is assigned again.
    return number not in d2l.plt.get_fignums() or d2l.plt.figure(number) is not figure


class NotebookDisplay:
    """Shows a figure in a notebook again and again, in place of the output of the cell.

    A figure that the inline backend manages is shown at most four times per second, because
    drawing it takes longer than a short epoch.
    """

    _SECONDS = 0.25

    def __init__(self) -> None:
        self._shown_at = -self._SECONDS

    def show(self, figure: Figure) -> bool:
        """Show the figure, and return whether this is a notebook that can show it."""
        display = notebook_display()
        if display is None or not has_matplotlib():
            return False
        if "inline" in d2l.plt.get_backend() and not is_closed(figure):
            # That backend shows all open figures when the cell ends. This picture must disappear
            # by then, and the last one must not be missed if it is skipped here.
            if time.monotonic() - self._shown_at >= self._SECONDS:
                display.display(figure)
                display.clear_output(wait=True)
                self._shown_at = time.monotonic()
        else:
            display.clear_output(wait=True)
            display.display(display.SVG(_svg(figure)))
        return True


def _svg(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    return picture.getvalue()
