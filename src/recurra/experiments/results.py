"""Results of a comparison: metrics of each run, and a summary table."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recurra.config import RunOptions
from recurra.inference.evaluate import unknown_remark
from recurra.io import html
from recurra.io.markdown import table


@dataclass(frozen=True)
class Variant:
    """A set of options that is compared with others.

    Attributes:
        name: the name in the table.
        options: the options that are given, including the common ones. With a budget in minutes,
            `training/recipe.py` chooses the others.
    """

    name: str
    options: RunOptions


@dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
        seed: the seed of the run.
        folder: the run directory.
        parameters: number of parameters of the model, or None if training failed.
        nats_per_token: loss of the best weights on the whole validation split with carried state,
            or None if training failed.
        bits_per_char: bits per character of the same evaluation, or None if unknown.
        unknown: fraction of predicted tokens that are <unk>, or None if training failed.
        tokens: number of training tokens at the last evaluation.
        seconds: training time at the last evaluation.
        tokens_per_second: training throughput, the median over the evaluations.
        records: the lines of metrics.jsonl.
    """

    seed: int
    folder: Path
    parameters: int | None
    nats_per_token: float | None
    bits_per_char: float | None
    unknown: float | None
    tokens: int
    seconds: float
    tokens_per_second: float
    records: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes except `records`, for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["records"]
        return values | {"folder": str(self.folder)}


@dataclass(frozen=True)
class Row:
    """The runs of one variant."""

    variant: Variant
    results: Sequence[Result]

    @property
    def scores(self) -> list[float]:
        """Bits per character of the runs that did not fail, or nats per token if unknown."""
        found = [
            r.nats_per_token if r.bits_per_char is None else r.bits_per_char for r in self.results
        ]
        return [score for score in found if score is not None]

    @property
    def mean(self) -> float:
        """Mean of the scores; infinite if every run failed."""
        return statistics.fmean(self.scores) if self.scores else math.inf

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the scores, or None if there are fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def mean_of(self, name: str) -> float | None:
        """Return the mean of an attribute of the results, or None if all of its values are None."""
        values = [value for r in self.results if (value := getattr(r, name)) is not None]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a comparison; `str` returns a Markdown table with remarks.

    Attributes:
        folder: the directory of the comparison.
        rows: one row per variant, sorted by mean score, the best first.

    Examples:
        >>> import recurra
        >>> comparison = recurra.compare(variants=["rnn", "gru"], seeds=1, steps=5, hidden_size=8)
        >>> best = comparison.rows[0]
        >>> best.variant.name in ("rnn", "gru")
        True
    """

    folder: Path
    rows: Sequence[Row]

    def as_good_as_the_best(self) -> list[Row]:
        """Return the rows whose difference from the best row is not significant.

        The test is Student's t at the 5% level. Rows with fewer than two scores are not tested.
        """
        best, *others = self.rows
        return [row for row in others if _is_within_noise(best, row)]

    def curves(self) -> dict[str, list[list[dict[str, Any]]]]:
        """Return the records of the runs of each variant, by its name."""
        return {row.variant.name: [r.records for r in row.results] for row in self.rows}

    def records(self) -> list[dict[str, Any]]:
        """Return the metrics of each run with the name of its variant, the best variant first."""
        return [
            {"variant": row.variant.name, **result.to_dict()}
            for row in self.rows
            for result in row.results
        ]

    def __str__(self) -> str:
        lines = [table(_HEAD, [_cells(row) for row in self.rows]), ""]
        return "\n".join([*lines, *self._remarks(), f"runs in {self.folder}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = html.table(_HEAD, [_cells(row) for row in self.rows])
        remarks = [*self._remarks(), f"runs in {self.folder}"]
        return cells + "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)

    def _remarks(self) -> list[str]:
        lines = [
            "means over the runs, on the whole validation split with carried state; spread:"
            " standard deviation of bits/char between seeds; best: lowest bits/char",
        ]
        if close := self.as_good_as_the_best():
            others = ", ".join(row.variant.name for row in close)
            best = self.rows[0].variant.name
            lines.append(f"no significant difference from {best} with these seeds: {others}")
        if len(self.rows) > 1 and all(len(row.results) == 1 for row in self.rows):
            lines.append(
                "one seed each: use more --seeds to test whether the differences are significant"
            )
        for row in self.rows:
            if remark := unknown_remark(row.mean_of("unknown") or 0.0):
                lines.append(f"{row.variant.name}: {remark}")
        return lines


_HEAD = (
    "variant", "nats/token", "bits/char", "spread", "best", "runs", "parameters", "tokens",
    "seconds", "tokens/s",
)  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    def mean(name: str, form: str) -> str:
        value = row.mean_of(name)
        return "-" if value is None else format(value, form)

    done = len(row.scores)
    failed = f" of {len(row.results)}" if done < len(row.results) else ""
    return (
        row.variant.name.replace("|", r"\|"),
        mean("nats_per_token", ".4f"),
        mean("bits_per_char", ".4f"),
        _format(row.spread),
        _format(min(row.scores, default=None)),
        f"{done}{failed}",
        mean("parameters", ",.0f"),
        mean("tokens", ",.0f"),
        mean("seconds", ".0f"),
        mean("tokens_per_second", ",.0f"),
    )


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


_STUDENT = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12,
)  # fmt: skip
"""97.5% quantiles of Student's t distribution for 1, 2, 3, ... degrees of freedom."""


def _is_within_noise(best: Row, other: Row) -> bool:
    if best.spread is None or other.spread is None:
        return False
    variances = (row.spread**2 / len(row.scores) for row in (best, other) if row.spread is not None)
    freedom = len(best.scores) + len(other.scores) - 2
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 2.0
    return other.mean - best.mean < quantile * math.sqrt(sum(variances))
