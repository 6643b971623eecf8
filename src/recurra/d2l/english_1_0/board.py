"""`ProgressBoard`: curves that are drawn during training (section 3.2)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from recurra import d2l
from recurra.d2l.english_1_0.hyperparameters import HyperParameters
from recurra.d2l.figures import NotebookDisplay, has_matplotlib, is_closed, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


class Point(NamedTuple):
    """A point of a curve."""

    x: float
    y: float


class ProgressBoard(HyperParameters):
    """Figure with one curve per label, to which points are added during training.

    In a notebook, the figure is redrawn in place. Elsewhere, the latest values are printed on
    stderr whenever x reaches another whole number, and `plt.savefig` saves the figure. Without
    matplotlib, the points are stored and printed only.

    Args:
        xlabel: label of the x-axis.
        ylabel: label of the y-axis.
        xlim: limits of the x-axis.
        ylim: limits of the y-axis.
        xscale: scale of the x-axis, "linear" or "log".
        yscale: scale of the y-axis, "linear" or "log".
        ls: line styles of the curves.
        colors: colours of the curves.
        fig: the figure to show; None creates one with pyplot.
        axes: the Axes to draw on; None uses those of the figure.
        figsize: size of a new figure in inches.
        display: whether to draw and to print. Otherwise, the points are stored only.

    Attributes:
        data: dictionary of the curves, a list of points (x, y) for each label.
        raw_points: dictionary of the points that are not averaged yet.

    Examples:
        >>> from recurra import d2l
        >>> board = d2l.ProgressBoard(xlabel="step")
        >>> for x in range(4):
        ...     board.draw(x, 10 * x, "loss", every_n=2)
        >>> board.data["loss"]
        [Point(x=0.5, y=5.0), Point(x=2.5, y=25.0)]
    """

    xlabel: str | None
    ylabel: str | None
    xlim: Sequence[float] | None
    ylim: Sequence[float] | None
    xscale: str
    yscale: str
    ls: Sequence[str]
    colors: Sequence[str]
    fig: Figure | None
    axes: Axes | None
    figsize: tuple[float, float]
    display: bool

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        xlim: Sequence[float] | None = None,
        ylim: Sequence[float] | None = None,
        xscale: str = "linear",
        yscale: str = "linear",
        ls: Sequence[str] = ("-", "--", "-.", ":"),
        colors: Sequence[str] = ("C0", "C1", "C2", "C3"),
        fig: Figure | None = None,
        axes: Axes | None = None,
        figsize: tuple[float, float] = (3.5, 2.5),
        display: bool = True,
    ) -> None:
        self.save_hyperparameters()
        self.data: dict[str, list[Point]] = {}
        self.raw_points: dict[str, list[Point]] = {}
        self._lines: dict[str, Line2D] = {}
        self._notebook = NotebookDisplay()
        self._printed_at: float = -math.inf

    def draw(self, x: Any, y: Any, label: str, every_n: int = 1) -> None:
        """Add a point to a curve.

        Args:
            x: a number, or a one-element tensor or array.
            y: a number, or a one-element tensor or array.
            label: the name of the curve.
            every_n: number of points whose mean is one point of the curve. A number below 1 counts
                as 1.
        """
        raw = self.raw_points.setdefault(label, [])
        curve = self.data.setdefault(label, [])
        raw.append(Point(float(x), float(y)))
        if len(raw) < every_n:
            return
        curve.append(Point(*(sum(values) / len(raw) for values in zip(*raw, strict=True))))
        raw.clear()
        if not self.display:
            return
        is_shown = False
        if has_matplotlib():
            is_shown = self._notebook.show(self._drawn())
        if not is_shown:
            self._print(curve[-1].x)

    def _drawn(self) -> Figure:
        """Return the figure with all curves in their present state."""
        axes = self._require_axes()
        for number, (label, points) in enumerate(self.data.items()):
            if label not in self._lines and points:
                (self._lines[label],) = axes.plot(
                    [],
                    [],
                    linestyle=self.ls[number % len(self.ls)],
                    color=self.colors[number % len(self.colors)],
                    label=label,
                )
                axes.legend(handles=list(self._lines.values()))
            if points:
                self._lines[label].set_data([p.x for p in points], [p.y for p in points])
        axes.relim()
        axes.autoscale_view()
        if self.xlim:
            axes.set_xlim(self.xlim[0], self.xlim[1])
        if self.ylim:
            axes.set_ylim(self.ylim[0], self.ylim[1])
        axes.set_xlabel(self.xlabel or "")
        axes.set_ylabel(self.ylabel or "")
        axes.set_xscale(self.xscale)
        axes.set_yscale(self.yscale)
        assert self.fig is not None
        return self.fig

    def _require_axes(self) -> Axes:
        if self.axes is not None:
            self.fig = self.axes.get_figure(root=True)
            return self.axes
        if self.fig is None or is_closed(self.fig):
            # A notebook closes its figures when a cell ends. Another training in the next cell
            # needs another figure, with the curves drawn so far.
            d2l.use_svg_display()
            self.fig, _ = open_figure(self.figsize)
            self._lines = {}
        return self.fig.gca()

    def _print(self, x: float) -> None:
        if math.floor(x) <= self._printed_at < x + 1:
            return
        self._printed_at = math.floor(x)
        values = [f"{label} {points[-1].y:.4g}" for label, points in self.data.items() if points]
        print(f"{self.xlabel or 'x'} {x:g}: {', '.join(values)}", file=sys.stderr)
