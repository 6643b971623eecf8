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
from recurra.io.markdown import table


@dataclass(frozen=True)
class Variant:
    """One of the settings that are compared.

    Attributes:
        name: the name that the table shows.
        options: the settings that were given, the common ones included; with a budget in minutes,
            the others are chosen (`training/recipe.py`).
    """

    name: str
    options: RunOptions


@dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
        parameters: of the model; None where the training failed, as for the next two.
        nats_per_token, bits_per_char: of the best weights on the whole validation part, with the
            state carried.
        unknown: share of that part that is <unk>, which is easier to predict than what it stands
            for.
        tokens, seconds: that it took, by its last report.
        tokens_per_second: of its updates, the median over the reports.
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
        """All but the records, ready for JSON."""
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
        """Bits per character (or nats per token, where those are not known), of runs that did not
        fail."""
        found = [
            r.nats_per_token if r.bits_per_char is None else r.bits_per_char for r in self.results
        ]
        return [score for score in found if score is not None]

    @property
    def mean(self) -> float:
        """Of the scores; infinite where every run failed."""
        return statistics.fmean(self.scores) if self.scores else math.inf

    @property
    def spread(self) -> float | None:
        """The scores' sample standard deviation; None with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def mean_of(self, name: str) -> float | None:
        """Mean of one of the results' figures over the runs that have it."""
        values = [value for r in self.results if (value := getattr(r, name)) is not None]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True, repr=False)
class Comparison:
    """All of it; printed, it is a Markdown table and what can be said of it.

    Attributes:
        folder: of the runs.
        rows: the best first.
    """

    folder: Path
    rows: Sequence[Row]

    def as_good_as_the_best(self) -> list[Row]:
        """Rows after the first whose distance to it chance alone exceeds in one of twenty cases
        (Student's t): these seeds do not show which of them is better."""
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
        lines = [
            table(_HEAD, [_cells(row) for row in self.rows]),
            "",
            "means over the runs, on the whole validation part with carried state; spread: standard"
            " deviation of bits/char between seeds; best: the lowest bits/char",
        ]
        if close := self.as_good_as_the_best():
            others = ", ".join(row.variant.name for row in close)
            best = self.rows[0].variant.name
            lines.append(f"too close to {best} to tell with these seeds: {others}")
        if len(self.rows) > 1 and all(len(row.results) == 1 for row in self.rows):
            lines.append("one seed each: how much of the differences is chance, more --seeds tell")
        for row in self.rows:
            if (share := row.mean_of("unknown") or 0.0) > UNKNOWN_TO_TELL:
                lines.append(
                    f"{share:.1%} of what {row.variant.name} predicts is <unk>, which flatters it"
                )
        return "\n".join([*lines, f"runs in {self.folder}"])

    __repr__ = __str__


UNKNOWN_TO_TELL = 0.001

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
        _shown(row.spread),
        _shown(min(row.scores, default=None)),
        f"{done}{failed}",
        mean("parameters", ",.0f"),
        mean("tokens", ",.0f"),
        mean("seconds", ".0f"),
        mean("tokens_per_second", ",.0f"),
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


_STUDENT = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12,
)  # fmt: skip
"""97.5 % quantiles of Student's t, by the degrees of freedom from 1 on."""


def _is_within_noise(best: Row, other: Row) -> bool:
    if best.spread is None or other.spread is None:
        return False
    variances = (row.spread**2 / len(row.scores) for row in (best, other) if row.spread is not None)
    freedom = len(best.scores) + len(other.scores) - 2
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 2.0
    return other.mean - best.mean < quantile * math.sqrt(sum(variances))
