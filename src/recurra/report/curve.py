"""Draw loss curves as text for a terminal and as SVG (plot extra)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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


def write_svg(records: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Write a plot of the training and validation loss against updates as SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for key, label in (("train_nats", "training"), ("val_nats", "validation")):
        points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="update", ylabel="nats per token")
    axes.set_title(_printable(title), parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, file)


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
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key in zip(panels, ("seconds", "tokens"), strict=True):
        for name, runs in curves.items():
            known = [run for run in runs if run]
            if not known:
                continue
            xs, losses = _interpolate_runs(known, key)
            (line,) = axes.plot(xs, losses.mean(0), label=_printable(name).replace("$", r"\$"))
            low, high = losses.min(0), losses.max(0)
            axes.fill_between(xs, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axes.set(xlabel=key)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="validation, nats per token")
    panels[0].legend()
    figure.suptitle(_printable(title).replace("$", r"\$"))
    _save(figure, file)


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


def _printable(title: str) -> str:
    # A file name can contain bytes that are not valid UTF-8.
    return title.encode("utf-8", "replace").decode("utf-8")


def _save(figure: Any, file: Path) -> None:
    from matplotlib import rc_context

    # Keep text as text instead of paths, and make the output reproducible.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "recurra"}
    with replaced(file) as temporary, rc_context(style), warnings.catch_warnings():
        # The viewer draws the text, so glyphs missing from matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="svg", metadata={"Date": None})
