"""Segments: the form of a batch of sequences of unequal length that a layer computes.

During the t steps of a segment, the same b sequences are active, the longest ones. Each segment is
(t, b, I). A batch of equal lengths is one segment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import dropout

from recurra.recurrence.cells import State

RunSegment = Callable[[Tensor, State], tuple[Tensor, State]]
"""Runs one layer over (t, b, I) from a state of b sequences."""


def sweep_forward(
    run_segment: RunSegment, segments: list[Tensor], state: State
) -> tuple[list[Tensor], State]:
    """Run from the first step to the last; a sequence that ends keeps its state."""
    outputs, ended = [], []
    for segment in segments:
        batch = segment.shape[1]
        ended.append(tuple(s[batch:] for s in state))
        output, state = run_segment(segment, tuple(s[:batch] for s in state))
        outputs.append(output)
    ended.append(state)
    # The shortest sequences, which ended first, are the last of the batch.
    return outputs, tuple(torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))


def sweep_backward(
    run_segment: RunSegment, segments: list[Tensor], initial: State
) -> tuple[list[Tensor], State]:
    """Run from the last step to the first; a sequence starts at its end, from its initial state."""
    outputs, state = [], tuple(s[:0] for s in initial)
    for segment in reversed(segments):
        joined, batch = state[0].shape[0], segment.shape[1]
        joining = (i[joined:batch] for i in initial)
        state = tuple(torch.cat(parts) for parts in zip(state, joining, strict=True))
        output, state = run_segment(segment.flip(0), state)
        outputs.append(output.flip(0))
    return outputs[::-1], state


def split(data: Tensor, batch_sizes: Tensor) -> list[Tensor]:
    """Split a PackedSequence into segments, (t, b, I) for each run of equal batch sizes."""
    sizes, steps = torch.unique_consecutive(batch_sizes, return_counts=True)
    shapes = list(zip(steps.tolist(), sizes.tolist(), strict=True))
    parts = torch.split(data, [t * b for t, b in shapes])
    return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]


def flatten(segments: list[Tensor]) -> Tensor:
    """Concatenate the rows of the segments, in the layout of a PackedSequence."""
    if len(segments) == 1:
        return segments[0].flatten(0, 1)
    return torch.cat([segment.flatten(0, 1) for segment in segments])


def drop(segments: list[Tensor], probability: float) -> list[Tensor]:
    """Apply dropout to all segments in one draw, which gives the same mask as torch.nn."""
    if len(segments) == 1:
        return [dropout(segments[0], probability)]
    rows = [segment.shape[0] * segment.shape[1] for segment in segments]
    parts = torch.split(dropout(flatten(segments), probability), rows)
    return [part.view_as(segment) for part, segment in zip(parts, segments, strict=True)]
