"""Figures of the book: `plot`, and `Animator`, which draws curves during training.

In a notebook, an Animator redraws its figure in place. Elsewhere, it also prints each point as a
line on stderr. The figure belongs to pyplot, so that `plt.savefig` after the training saves it.
matplotlib (the `plot` extra) is imported on first use, and training works without it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra import d2l
from recurra.d2l.figures import NotebookDisplay, has_matplotlib, open_figure
from recurra.errors import MissingExtraError
from recurra.runtime.interactive import notebook_display

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("-", "m--", "g-.", "r:")


def pyplot() -> Any:
    """Return matplotlib.pyplot, which the book calls d2l.plt.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise MissingExtraError("drawing", "plot") from error
    return matplotlib.pyplot


def use_svg_display() -> None:
    """Display figures in a notebook as SVG; no effect outside a notebook.

    Examples:
        >>> from recurra import d2l
        >>> d2l.use_svg_display()
    """
    if notebook_display() is not None:
        importlib.import_module("matplotlib_inline.backend_inline").set_matplotlib_formats("svg")


def set_figsize(figsize: tuple[float, float] = (3.5, 2.5)) -> None:
    """Set the size of new figures in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> from recurra import d2l
        >>> d2l.set_figsize((4, 3))
        >>> d2l.plt.rcParams["figure.figsize"]
        [4.0, 3.0]
    """
    d2l.use_svg_display()
    d2l.plt.rcParams["figure.figsize"] = figsize


def set_axes(
    axes: Axes,
    xlabel: str | None,
    ylabel: str | None,
    xlim: Sequence[float] | None,
    ylim: Sequence[float] | None,
    xscale: str,
    yscale: str,
    legend: Sequence[str] | None,
) -> None:
    """Set labels, scales, limits, legend and grid of a matplotlib Axes.

    Examples:
        >>> from recurra import d2l
        >>> figure, axes = d2l.plt.subplots()
        >>> d2l.set_axes(axes, "epoch", "loss", [0, 10], [0, 1], "linear", "linear", None)
        >>> axes.get_xlabel(), axes.get_yscale()
        ('epoch', 'linear')
    """
    axes.set_xlabel(xlabel or "")
    axes.set_ylabel(ylabel or "")
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    # The limits of train_ch8, 10 and num_epochs, are an empty range for 10 or fewer epochs.
    if xlim is not None and xlim[0] < xlim[1]:
        axes.set_xlim(xlim[0], xlim[1])
    if ylim is not None and ylim[0] < ylim[1]:
        axes.set_ylim(ylim[0], ylim[1])
    if legend:
        axes.legend(legend)
    axes.grid()


def _is_list(values: Any) -> bool:
    return hasattr(values, "__len__") and getattr(values, "ndim", 1) > 0


def _curves(values: Any) -> list[Any]:
    """Return a single curve or several curves as a list of curves."""
    several = getattr(values, "ndim", 1) > 1 or (
        isinstance(values, (list, tuple)) and len(values) > 0 and _is_list(values[0])
    )
    return list(values) if several else [values]


def plot(
    X: Any,  # noqa: N803
    Y: Any = None,  # noqa: N803
    xlabel: str | None = None,
    ylabel: str | None = None,
    legend: Sequence[str] | None = None,
    xlim: Sequence[float] | None = None,
    ylim: Sequence[float] | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    fmts: Sequence[str] = FORMATS,
    figsize: tuple[float, float] = (3.5, 2.5),
    axes: Axes | None = None,
) -> None:
    """Plot one or several curves (section 2.4); without Y, plot the values of X by index.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> from recurra import d2l
        >>> x = d2l.np.arange(0, 3, 0.1)
        >>> d2l.plot(x, [x, x**2], xlabel="x", ylabel="f(x)", legend=["x", "x^2"])
        >>> len(d2l.plt.gca().lines)
        2
    """
    d2l.set_figsize(figsize)
    axes = axes if axes is not None else d2l.plt.gca()
    if Y is None:
        ys = _curves(X)
        xs = [range(len(y)) for y in ys]
    else:
        xs, ys = _curves(X), _curves(Y)
        xs = xs * len(ys) if len(xs) == 1 else xs
    axes.cla()
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        axes.plot(x, y, fmts[i % len(fmts)])
    d2l.set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)
    figure = axes.figure.figure  # The whole figure, also if the axes are in a part of it.
    # In a notebook, figures are cut to their content. In a file, the labels would be cut off.
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("tight")


class Animator:
    """Figure whose curves are extended during training (section 3.6).

    Attributes:
        X: x-coordinates of each curve.
        Y: y-coordinates of each curve.
        fmts: matplotlib format strings of the curves.

    Examples:
        >>> from recurra import d2l
        >>> animator = d2l.Animator(xlabel="epoch", ylabel="loss", legend=["train", "test"])
        >>> animator.add(1, (0.9, 1.1))
        >>> animator.add(2, (0.6, 0.8))
        >>> animator.Y
        [[0.9, 0.6], [1.1, 0.8]]
        >>> animator.save("loss.svg")
    """

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | None = None,
        xlim: Sequence[float] | None = None,
        ylim: Sequence[float] | None = None,
        xscale: str = "linear",
        yscale: str = "linear",
        fmts: Sequence[str] = FORMATS,
        nrows: int = 1,
        ncols: int = 1,
        figsize: tuple[float, float] = (3.5, 2.5),
    ) -> None:
        self._settings = (xlabel, ylabel, xlim, ylim, xscale, yscale, legend)
        self._xlabel, self._ylabel = xlabel or "x", ylabel or "y"
        self._legend = list(legend or [])
        self._display = NotebookDisplay()
        self._figure: tuple[Figure, list[Axes]] | None = None
        self.fmts = fmts
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        if has_matplotlib():
            d2l.use_svg_display()
            self._figure = open_figure(figsize, nrows, ncols)

    def add(self, x: Any, y: Any) -> None:
        """Add a point to each curve, and display the figure or print the points.

        Args:
            x: a number for all curves, or a sequence with a number per curve.
            y: a number, or a sequence with a number per curve. A curve whose number is None is not
                extended.
        """
        ys = list(y) if _is_list(y) else [y]
        xs = list(x) if _is_list(x) else [x] * len(ys)
        while len(self.Y) < len(ys):
            self.X.append([])
            self.Y.append([])
        points = [
            (curve, float(a), float(b))
            for curve, (a, b) in enumerate(zip(xs, ys, strict=True))
            if a is not None and b is not None
        ]
        for curve, a, b in points:
            self.X[curve].append(a)
            self.Y[curve].append(b)
        if self._figure is not None:
            self._draw()
        if self._figure is None or not self._display.show(self.fig):
            self._write(points)

    def save(self, path: str | Path) -> None:
        """Write the figure to a file; the suffix (.svg, .png, .pdf) determines the format.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        self.fig.savefig(path, format=Path(path).suffix.removeprefix(".") or "svg")

    @property
    def fig(self) -> Figure:
        """The matplotlib Figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return self._require_figure()[0]

    @property
    def axes(self) -> list[Axes]:
        """The Axes of the figure, row by row; the curves are in the first one."""
        return self._require_figure()[1]

    def _require_figure(self) -> tuple[Figure, list[Axes]]:
        if self._figure is None:
            raise MissingExtraError("drawing", "plot")
        return self._figure

    def _draw(self) -> None:
        axes = self.axes[0]
        axes.cla()
        for i, (x, y) in enumerate(zip(self.X, self.Y, strict=True)):
            axes.plot(x, y, self.fmts[i % len(self.fmts)])
        xlabel, ylabel, xlim, ylim, xscale, yscale, legend = self._settings
        d2l.set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)

    def _write(self, points: Sequence[tuple[int, float, float]]) -> None:
        values = [f"{self._label(curve)} {y:.4g}" for curve, _, y in points]
        if values:
            print(f"{self._xlabel} {points[0][1]:g}: {', '.join(values)}", file=sys.stderr)

    def _label(self, curve: int) -> str:
        name = self._legend[curve] if curve < len(self._legend) else ""
        return f"{name} {self._ylabel}".strip()
