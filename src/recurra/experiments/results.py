"""Results of a comparison: metrics of each run, significance tests, and a summary table."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from recurra.config import RunOptions
from recurra.experiments.significance import (
    LEVEL,
    MAX_RUNS,
    POWER,
    holm_correction,
    runs_needed,
    welch_test,
)
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
        hidden_size: number of hidden units of the model, or None if training failed.
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
    hidden_size: int | None = None

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


@dataclass(frozen=True)
class PairTest:
    """Welch's t-test of the scores of two variants.

    Attributes:
        better, worse: the names of the variants, the one with the lower mean score first.
        difference: difference of the mean scores.
        p_value: two-sided p-value, corrected for the number of pairs by Holm's procedure.
        seeds_needed: estimated number of seeds with which the test would decide; see
            `significance.runs_needed`. None if the test is decided, or if the number exceeds
            `MAX_RUNS`.
    """

    better: str
    worse: str
    difference: float
    p_value: float
    seeds_needed: int | None

    @property
    def is_decided(self) -> bool:
        """Whether the difference is significant at the level `LEVEL`."""
        return self.p_value < LEVEL

    @property
    def conclusion(self) -> str:
        """The decision as text, or the number of seeds that would make it significant."""
        if self.is_decided:
            return "different"
        if self.difference == 0.0:
            return "no difference"
        needed = self.seeds_needed
        count = f"more than {MAX_RUNS:,}" if needed is None else f"about {needed}"
        return f"no significant difference; {count} seeds needed"


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

    @cached_property
    def tests(self) -> list[PairTest]:
        """Welch's t-test of every pair of variants with at least two scores each.

        All pairs are tested and corrected for, because which variant is the best follows from the
        same scores.
        """
        rows = [row for row in self.rows if len(row.scores) > 1]
        pairs = list(combinations(rows, 2))
        p_values = holm_correction([welch_test(a.scores, b.scores) for a, b in pairs])
        return [
            PairTest(
                better=better.variant.name,
                worse=worse.variant.name,
                difference=worse.mean - better.mean,
                p_value=p_value,
                seeds_needed=None
                if p_value < LEVEL
                else runs_needed(better.scores, worse.scores, LEVEL / len(pairs)),
            )
            for (better, worse), p_value in zip(pairs, p_values, strict=True)
        ]

    @property
    def unit(self) -> str:
        """Unit of the scores: bits/char, or nats/token if the bits per character are unknown."""
        results = [result for row in self.rows for result in row.results]
        return "bits/char" if any(r.bits_per_char is not None for r in results) else "nats/token"

    def not_significantly_worse(self) -> list[Row]:
        """Return the rows whose difference from the best row is not significant; see `tests`.

        Rows with fewer than two scores are not tested.
        """
        best = self.rows[0].variant.name
        close = {t.worse for t in self.tests if t.better == best and not t.is_decided}
        return [row for row in self.rows if row.variant.name in close]

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

    def to_dict(self) -> dict[str, Any]:
        """Return the runs and the tests for JSON; see `Result` and `PairTest`."""
        return {
            "runs": self.records(),
            "test": {
                "name": "Welch's t-test, two-sided",
                "level": LEVEL,
                "correction": f"Holm, {len(self.tests)} pairs",
                "unit": self.unit,
                "pairs": [
                    {**dataclasses.asdict(test), "is_decided": test.is_decided}
                    for test in self.tests
                ],
            },
        }

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
        lines += self._describe_tests()
        lines += self._describe_sizes()
        for row in self.rows:
            if remark := unknown_remark(row.mean_of("unknown") or 0.0):
                lines.append(f"{row.variant.name}: {remark}")
        return lines

    def _describe_tests(self) -> Iterator[str]:
        """Yield the test of each variant against the best one."""
        best, *others = self.rows
        tests = [test for test in self.tests if test.better == best.variant.name]
        if tests:
            width = max(len(test.worse) for test in tests)
            pairs = "a pair" if len(self.tests) == 1 else f"{len(self.tests)} pairs"
            yield (
                f"compared with {best.variant.name}, the best, by Welch's t-test of {self.unit}"
                f" (two-sided, level {LEVEL:.0%}, Holm's correction for {pairs}):"
            )
        for test in tests:
            shown = f"= {test.p_value:.2g}" if test.p_value >= 1e-4 else "< 0.0001"
            yield (
                f"  {test.worse:{width}}  {test.difference:+.4f}  p {shown:<10}  {test.conclusion}"
            )
        if any(test.seeds_needed for test in tests):
            yield (
                f"  (seeds needed for a power of {POWER:.0%}, given these means and standard"
                " deviations; run the same command with more --seeds and this --out)"
            )
        if others and not tests:
            yield "no significance test: each variant needs two finished runs; use more --seeds"

    def _describe_sizes(self) -> Iterator[str]:
        sizes = [size for row in self.rows if (size := row.mean_of("parameters")) is not None]
        if sizes and max(sizes) > SIZE_RATIO * min(sizes):
            yield (
                f"the models differ in size, {min(sizes):,.0f} to {max(sizes):,.0f} parameters"
                f" ({max(sizes) / min(sizes):.1f} times); --equal-parameters compares models"
                " with the same number of parameters"
            )


SIZE_RATIO = 1.1
"""Ratio of the largest to the smallest model above which the table contains a remark."""

_HEAD = (
    "variant", "nats/token", "bits/char", "spread", "best", "runs", "units", "parameters", "tokens",
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
        mean("hidden_size", ".0f"),
        mean("parameters", ",.0f"),
        mean("tokens", ",.0f"),
        mean("seconds", ".0f"),
        mean("tokens_per_second", ",.0f"),
    )


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
