"""Comparisons of variants of the settings on one text, each with several seeds."""

from recurra.experiments.design import Design
from recurra.experiments.results import Comparison, PairTest, Result, Row, Variant
from recurra.experiments.runs import compare, run_comparison

__all__ = [
    "Comparison",
    "Design",
    "PairTest",
    "Result",
    "Row",
    "Variant",
    "compare",
    "run_comparison",
]
