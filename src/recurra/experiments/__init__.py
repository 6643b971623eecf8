"""Several settings on one text, with several seeds: the runs, and what they found."""

from recurra.experiments.results import Comparison, Contender, Result, Row
from recurra.experiments.runs import compare, run_comparison

__all__ = ["Comparison", "Contender", "Result", "Row", "compare", "run_comparison"]
