"""Comparisons: several settings on one text, each with several seeds."""

from recurra.experiments.results import Comparison, Contender, Result, Row
from recurra.experiments.runs import compare, run_comparison

__all__ = ["Comparison", "Contender", "Result", "Row", "compare", "run_comparison"]
