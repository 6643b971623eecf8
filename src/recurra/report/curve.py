"""Draw loss curves as text for a terminal and as SVG (plot extra).

The SVG files have a light and a dark theme, and shrink to the width of a narrow window.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.errors import MissingExtraError
from recurra.io.files import replaced

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots in a Braille character, relative to U+2800: four rows of two dots."""


def draw(records: Sequence[dict[str, Any]], width: int = 60, height: int = 10) -> str:
    """Return a plot of the loss against updates, drawn with Braille characters.

    The plot shows the validation loss, or the training loss if there is no validation loss.

    Args:
        records: lines of metrics.jsonl.
        width: width of the plot area in characters.
        height: height of the plot area in characters.

    Returns:
        The plot, or an empty string if there are fewer than two points.
    """
    key = _series_key(records)
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    if len(points) < 2:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    cells = [[0] * width for _ in range(height)]
    for column, value in enumerate(_interpolate(points, 2 * width)):
        row = round((high - value) / span * (4 * height - 1))
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    lines = []
    for index, cell_row in enumerate(cells):
        label = high if index == 0 else low if index == height - 1 else None
        text = "".join(chr(0x2800 + bits) for bits in cell_row)
        lines.append(f"{'' if label is None else f'{label:.2f}':>6} ┤{text}".rstrip("\u2800"))
    lines.append(f"{'':>6} └{'─' * width}")
    title = "validation" if key == "val_nats" else "training"
    lines.append(f"{'':>8}{title} loss in nats per token, up to step {points[-1][0]:,}")
    return "\n".join(lines)


def _series_key(records: Sequence[dict[str, Any]]) -> str:
    has_validation = any(r.get("val_nats") is not None for r in records)
    return "val_nats" if has_validation else "train_nats"


def _interpolate(points: Sequence[tuple[int, float]], count: int) -> list[float]:
    first, last = points[0][0], points[-1][0]
    values, index = [], 0
    for column in range(count):
        x = first + (last - first) * column / (count - 1)
        while index < len(points) - 2 and points[index + 1][0] < x:
            index += 1
        (x0, y0), (x1, y1) = points[index], points[index + 1]
        share = min(max((x - x0) / ((x1 - x0) or 1), 0.0), 1.0)
        values.append(y0 + (y1 - y0) * share)
    return values


def require_matplotlib() -> None:
    """Check that loss curves can be written, so that training does not fail at its end.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--plot", "plot") from error


def write_svg(
    records: Sequence[dict[str, Any]],
    file: Path,
    title: str,
    losses: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a plot of the training and validation loss against training tokens as SVG.

    Args:
        records: lines of metrics.jsonl.
        file: the file to write.
        title: title of the figure.
        losses: lines of loss.jsonl, which have more points of the training loss.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with _figure(file, title, height=3.8) as figure:
        axes = figure.subplots()
        training = losses if len(losses) > len(records) else records
        for key, label, lines in (
            ("train_nats", "training", training), ("val_nats", "validation", records)
        ):  # fmt: skip
            points = [(r["tokens"], r[key]) for r in lines if r.get(key) is not None]
            if points:
                marker = "o" if len(points) == 1 else None
                axes.plot(*zip(*points, strict=True), label=label, marker=marker)
        axes.set(ylabel="nats per token")
        _label_tokens(axes)
        if axes.lines:
            axes.legend(loc="upper right")


def write_comparison_svg(
    curves: Mapping[str, Sequence[Sequence[dict[str, Any]]]], file: Path, title: str
) -> None:
    """Write plots of the validation loss against time and against tokens as one SVG file.

    For each variant, a line shows the mean over its runs, and a band shows their minimum and
    maximum.

    Args:
        curves: the records of each run of each variant, by the name of the variant.
        file: the file to write.
        title: title of the figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    names = {name: _wrapped(name) for name in curves}
    num_columns = 3 if max(map(len, curves), default=0) <= 16 else 1
    num_lines = sum(name.count("\n") + 1 for name in names.values()) / num_columns
    with _figure(file, title, height=6.4 + 0.24 * num_lines) as figure:
        by_time, by_tokens = panels = figure.subplots(2, 1, sharey=True)
        known = {name: [run for run in runs if run] for name, runs in curves.items()}
        last = max((run[-1]["seconds"] for runs in known.values() for run in runs), default=0.0)
        unit, seconds = _time_unit(last)
        for axes, key, scale in zip(panels, ("seconds", "tokens"), (seconds, 1.0), strict=True):
            for number, (name, runs) in enumerate(known.items()):
                if runs:
                    _plot_runs(axes, runs, key, scale, names[name], number)
            axes.set(ylabel="validation, nats per token")
        by_time.set(xlabel=f"training time, {unit}")
        _label_tokens(by_tokens)
        lines, labels = by_time.get_legend_handles_labels()
        if lines:
            # A title of the figure would be drawn over a legend outside the panels.
            shown = figure.get_suptitle()
            figure.suptitle("")
            figure.legend(
                lines, labels, loc="outside upper left", ncols=num_columns, title=shown,
                alignment="left",
            )  # fmt: skip


def _plot_runs(
    axes: Any,
    runs: Sequence[Sequence[dict[str, Any]]],
    key: str,
    scale: float,
    name: str,
    number: int,
) -> None:
    xs, losses = _interpolate_runs(runs, key)
    xs = xs / scale
    color = _COLORS[number % len(_COLORS)]
    style = _LINE_STYLES[number // len(_COLORS) % len(_LINE_STYLES)]
    marker = "o" if xs[0] == xs[-1] else None
    axes.plot(xs, losses.mean(0), style, label=name, color=color, marker=marker)
    axes.fill_between(xs, losses.min(0), losses.max(0), alpha=0.2, color=color, linewidth=0)


def _interpolate_runs(
    runs: Sequence[Sequence[dict[str, Any]]], key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return common positions (N,) and the validation loss of each run there (runs, N)."""
    first = max(run[0][key] for run in runs)
    last = max(min(run[-1][key] for run in runs), first)
    positions = np.linspace(first, last, 200)
    losses = [
        np.interp(positions, [r[key] for r in run], [r["val_nats"] for r in run]) for run in runs
    ]
    return positions, np.stack(losses)


def _time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit for an axis that ends at this time, and its duration in seconds."""
    if seconds > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds > 300 else ("seconds", 1.0)


def _label_tokens(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set(xlabel="training tokens")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter())


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(_escaped(name), 56)) or name


def _escaped(text: str) -> str:
    """Return a text that matplotlib shows unchanged.

    A file name can contain bytes that are not valid UTF-8, and matplotlib reads $ as mathematics.
    """
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


_COLORS = (
    "#2f7fd1", "#d9730d", "#2b9a5b", "#cf4444", "#8a63d2", "#9a6b4f", "#c2569f", "#7a8088",
    "#8f9a1b", "#1a9cab",
)  # fmt: skip
"""Colors of lines, visible on the light and on the dark background."""
_LINE_STYLES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left", "figure.titlesize": 12,
    "legend.title_fontsize": 12,
    "figure.facecolor": "#ffffff", "savefig.facecolor": "#ffffff", "axes.facecolor": "#ffffff",
    "text.color": "#1d1d1f", "axes.labelcolor": "#1d1d1f", "xtick.color": "#1d1d1f",
    "ytick.color": "#1d1d1f", "axes.edgecolor": "#1d1d1f", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False,
    # Keep text as text instead of paths, and make the output reproducible.
    "svg.fonttype": "none", "svg.hashsalt": "recurra",
}  # fmt: skip
_THEMES = """
svg { max-width: 100%; height: auto; background: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { background: #17181a; }
  [style*="fill: #ffffff"] { fill: #17181a !important; }
  [style*="stroke: #1d1d1f"] { stroke: #b9b9c0 !important; }
  text { fill: #e8e8ea !important; }
}
"""


@contextmanager
def _figure(file: Path, title: str, *, height: float) -> Iterator[Any]:
    """Yield a figure of 6.4 by `height` inches, which is written to the file on exit.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "axes.prop_cycle": cycler(color=_COLORS)}):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        figure.suptitle(_wrapped(title), x=0.01, ha="left")
        yield figure
        with replaced(file) as temporary, warnings.catch_warnings():
            # The viewer draws the text, so glyphs missing from matplotlib's font do not matter.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(temporary, format="svg", metadata={"Date": None})
            picture = temporary.read_text("utf-8")
            temporary.write_text(picture.replace("</style>", f"{_THEMES}</style>", 1), "utf-8")
