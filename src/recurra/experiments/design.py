"""The design of a comparison: what all variants have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """The design of a comparison; `checks.py` checks the values.

    Attributes:
        seeds: number of runs per variant.
        num_tokens: number of training tokens of each run, or None with another budget.
        equal_parameters: whether the hidden size of each variant is chosen so that it has about as
            many parameters as the first one.
    """

    seeds: int = 3
    num_tokens: int | None = None
    equal_parameters: bool = False
