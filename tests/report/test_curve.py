"""The SVG files of loss curves: labels that do not overlap, themes and unusual names."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
from recurra.report.curve import write_comparison_svg, write_svg

Record = dict[str, Any]


def records(tokens: float, seconds: float = 100.0, count: int = 12) -> list[Record]:
    return [
        {
            "step": 10 * i, "tokens": tokens * i / count, "seconds": seconds * i / count,
            "train_nats": 3.0 / i, "val_nats": 4.0 / i,
        }
        for i in range(1, count + 1)
    ]  # fmt: skip


def texts(file: Path) -> list[tuple[str, float, float, float]]:
    """Return the texts of a picture with their left end, width (estimated) and baseline."""
    found = []
    for element in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text"):
        style, place = element.get("style", ""), element.get("transform", "")
        size = float(re.findall(r"(?:font-size|font): ?([\d.]+)px", style)[0])
        shown = "".join(element.itertext())
        width = 0.6 * size * len(shown)
        if "rotate(-90" in place:
            continue
        x, y = element.get("x"), element.get("y")
        if x is None or y is None:
            x, y = re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", place)[0]
        left = float(x) - (width / 2 if "middle" in style else width if "end" in style else 0)
        found.append((shown, left, width, round(float(y))))
    return found


def assert_no_overlap(file: Path) -> None:
    rows = defaultdict(list)
    for shown, left, width, y in texts(file):
        rows[y].append((left, left + width, shown))
    for row in rows.values():
        row.sort()
        for (_, end, before), (start, _, after) in pairwise(row):
            assert start > end + 2, f"{before!r} runs into {after!r}"


@pytest.mark.parametrize("tokens", [900.0, 123_456.0, 7_654_321.0, 9.87e9])
@pytest.mark.parametrize("seconds", [2.9, 4000.0, 123_456.0])
def test_write_comparison_svg_labels_do_not_overlap(
    tmp_path: Path, tokens: float, seconds: float
) -> None:
    names = ["lstm", "gru", "lstm --num-layers 2 --dropout 0.1 --lr 0.001 --optimizer adamw"]
    curves = {name: [records(tokens, seconds)] * 2 for name in names}
    for shown in (curves, {"lstm": curves["lstm"], "gru": curves["gru"]}):
        write_comparison_svg(shown, tmp_path / "all.svg", "a title")
        assert_no_overlap(tmp_path / "all.svg")


@pytest.mark.parametrize(
    ("seconds", "label"), [(30.0, "seconds"), (900.0, "minutes"), (90_000.0, "hours")]
)
def test_write_comparison_svg_unit_of_time_fits(tmp_path: Path, seconds: float, label: str) -> None:
    write_comparison_svg({"a": [records(1e6, seconds)]}, tmp_path / "all.svg", "t")
    shown = [text for text, *_ in texts(tmp_path / "all.svg")]
    assert f"training time, {label}" in shown
    assert "training tokens" in shown
    assert "1 M" in shown


def test_write_svg_labels_do_not_overlap(tmp_path: Path) -> None:
    for tokens in (900.0, 123_456.0, 9.87e9):
        write_svg(records(tokens), tmp_path / "loss.svg", "run")
        assert_no_overlap(tmp_path / "loss.svg")


def test_write_svg_has_a_dark_theme_and_fits_narrow_windows(tmp_path: Path) -> None:
    write_svg(records(100.0), tmp_path / "loss.svg", "run")
    picture = (tmp_path / "loss.svg").read_text("utf-8")
    assert "prefers-color-scheme: dark" in picture
    assert "max-width: 100%" in picture
    # The rules of the dark theme select these colors by their notation.
    assert 'style="fill: #ffffff"' in picture
    assert "stroke: #1d1d1f" in picture
    names = r'(xmlns(:\w+)?|rdf:\w+)="[^"]*"|<dc:title>.*|<!DOCTYPE[^>]*>'
    assert "http" not in re.sub(names, "", picture)


def test_write_svg_shows_names_unchanged(tmp_path: Path) -> None:
    name = "a $x^2$ <b> & \\alpha_1"
    write_svg(records(100.0), tmp_path / "loss.svg", name)
    assert name in [text for text, *_ in texts(tmp_path / "loss.svg")]
    write_comparison_svg({name: [records(9.0)]}, tmp_path / "all.svg", "\udcff 水")
    shown = [text for text, *_ in texts(tmp_path / "all.svg")]
    assert name in shown
    assert "? 水" in shown


def test_write_comparison_svg_single_report_is_a_point(tmp_path: Path) -> None:
    write_comparison_svg({"a": [records(9.0, count=1)], "b": [[]]}, tmp_path / "all.svg", "t")
    assert "<use" in (tmp_path / "all.svg").read_text("utf-8").split("line2d")[-3]


def test_write_comparison_svg_without_records_has_a_title(tmp_path: Path) -> None:
    write_comparison_svg({"a": [[]]}, tmp_path / "all.svg", "nothing yet")
    assert "nothing yet" in [text for text, *_ in texts(tmp_path / "all.svg")]


def test_write_comparison_svg_eleven_variants_differ(tmp_path: Path) -> None:
    write_comparison_svg({f"v{i}": [records(9.0)] for i in range(11)}, tmp_path / "all.svg", "t")
    picture = (tmp_path / "all.svg").read_text("utf-8")
    lines = re.findall(r'style="fill: none; (stroke[^"]*stroke-width: 1.5[^"]*)"', picture)
    assert len(set(lines)) == 11
