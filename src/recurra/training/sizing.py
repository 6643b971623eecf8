"""Count parameters and operations of a model; choose the hidden size for a number of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

from recurra.config import ModelConfig
from recurra.config.model import MAX_UNITS
from recurra.model.recurrent_lm import parameter_shapes

UNITS = (16, 8, 4, 2, 1)
"""Hidden sizes are a multiple of the first of these that meets `TOLERANCE`. The kernels compute
panels of 16 columns and are fastest with multiples of 16."""
TOLERANCE = 0.02
"""Maximum relative difference between the number of parameters and the target. If no hidden size
meets it, the nearest one is chosen."""


def num_parameters(model: ModelConfig) -> int:
    """Return the number of parameters of a model without creating it.

    Examples:
        >>> from recurra.config import ModelConfig
        >>> from recurra.training.sizing import num_parameters
        >>> num_parameters(ModelConfig(cell="lstm", hidden_size=8, vocab_size=58, embedding_size=0))
        2698
    """
    return sum(math.prod(shape) for shape in parameter_shapes(model).values())


def flops_per_token(model: ModelConfig) -> float:
    """Return the number of floating-point operations of all matrix products of a training step.

    The number is per token: 2 for each weight in the forward pass, and 4 in the backward pass. The
    lookup of token embeddings is not a matrix product.
    """
    shapes = parameter_shapes(model)
    looked_up = "embedding" if model.embedding_size else "weight_ih_l0"
    products = [
        math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and name != looked_up
    ]
    tied = math.prod(shapes["embedding"]) if model.tie_weights else 0
    return 6.0 * (sum(products) + tied)


def hidden_size_for(target: int, model_of: Callable[[int], ModelConfig]) -> int:
    """Return the hidden size with which a model has about `target` parameters.

    Args:
        target: number of parameters.
        model_of: returns the model with a hidden size; its number of parameters increases with it.
    """

    def error(size: int) -> float:
        return abs(num_parameters(model_of(size)) - target)

    for unit in UNITS:
        low, high = 0, MAX_UNITS // unit
        while high - low > 1:
            middle = (low + high) // 2
            is_small = num_parameters(model_of(middle * unit)) <= target
            low, high = (middle, high) if is_small else (low, middle)
        best = min((size * unit for size in (low, high) if size), key=error)
        if error(best) <= TOLERANCE * target:
            break
    return best


def describe_size(name: str, model: ModelConfig, target: int) -> str:
    """Return a line with the hidden size of a variant and its number of parameters."""
    count = num_parameters(model)
    difference = "" if count == target else f" ({count / target - 1:+.1%})"
    return f"{name}: {model.hidden_size} units, {count:,} parameters{difference}"
