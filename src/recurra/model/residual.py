"""Recurrent layers in residual blocks, for deep stacks.

The block is that of Griffin (De et al. 2024, arXiv 2402.19427, section 2) without its convolution:

    x = x + (cell(u) * gelu(u W_gate')) W_out'      with u = rms(x) * norm
    x = x + (gelu(v W_a') * v W_b') W_feed_out'     with v = rms(x) * feed_norm

and after the last block x = rms(x) * final_norm. `feed_in` holds W_a over W_b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm

from recurra.recurrence.cells import LayerParameters, State
from recurra.recurrence.dropout import NO_DROPOUT, Dropout, Rows, drop, drop_weights
from recurra.recurrence.layer import run
from recurra.recurrence.precision import Precision, find_precision, product

EXPANSION = 2
"""Width of the feed-forward part, in hidden sizes."""


class BlockParameters(NamedTuple):
    """The parameters of a block beside those of its recurrent layer.

    `norm` and `feed_norm` (H,), `gate` and `out` (H, H), `feed_in` (2*E*H, H), `feed_out` (H, E*H)
    with E = `EXPANSION`.
    """

    norm: Tensor
    gate: Tensor
    out: Tensor
    feed_norm: Tensor
    feed_in: Tensor
    feed_out: Tensor


def block_shapes(units: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a block."""
    wide = EXPANSION * units
    shapes = ((units,), (units, units), (units, units), (units,), (2 * wide, units), (units, wide))
    return dict(zip(BlockParameters._fields, shapes, strict=True))


def run_blocks(
    cell: str,
    inputs: Tensor,
    state: State | None,
    layers: Sequence[LayerParameters],
    blocks: Sequence[BlockParameters],
    final_norm: Tensor,
    backend: str = "auto",
    *,
    dropout: Dropout = NO_DROPOUT,
    rows: Rows | None = None,
    precision: str | Precision = "fp32",
    **options: Any,
) -> tuple[Tensor, State]:
    """Run stacked blocks.

    Args:
        inputs: (T, B, H) numbers.
        blocks: the other parameters of each block.
        final_norm: (H,).
        dropout: `between` applies to the output of each residual branch, `output` to the result.
        cell, state, layers, backend, rows, precision, options: as in `layer.run_stack`.

    Returns:
        Outputs (T, B, H) and the state, each tensor (L, B, H).
    """
    found_precision = find_precision(precision)
    dtype = found_precision.product_dtype(inputs.dtype)
    if dropout.weight > 0.0:
        layers = drop_weights(layers, dropout.weight)

    def maybe_drop(added: Tensor, probability: float) -> Tensor:
        return drop(added, probability, dropout, rows) if probability > 0.0 else added

    finals, x = [], inputs
    with found_precision.products(inputs.device):
        for index, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
            initial = None if state is None else tuple(s[index] for s in state)
            normed = rms_norm(x, block.norm.shape, block.norm)
            read, final = run(
                cell, normed, initial, layer, backend, precision=found_precision, **options
            )
            finals.append(final)
            gated = read * gelu(product(normed, block.gate, dtype))
            x = x + maybe_drop(product(gated, block.out, dtype), dropout.between)
            normed = rms_norm(x, block.feed_norm.shape, block.feed_norm)
            a, b = product(normed, block.feed_in, dtype).chunk(2, dim=-1)
            x = x + maybe_drop(product(gelu(a) * b, block.feed_out, dtype), dropout.between)
    outputs = maybe_drop(rms_norm(x, final_norm.shape, final_norm), dropout.output)
    return outputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
