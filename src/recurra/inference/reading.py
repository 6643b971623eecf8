"""Run a model over ids in evaluation mode, in chunks, several rows in parallel.

Memory use does not depend on the length of the text. Only the current chunk of a memory-mapped file
is converted to int64, and one call keeps at most `LOGITS_PER_CALL` logits in memory, except that a
single step is always computed for all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from recurra.engine.select import select_reader
from recurra.errors import SourceError

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM

IdArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# 64 MiB of fp32 logits: large enough for one efficient matrix product, small for any machine.
LOGITS_PER_CALL = 2**24


@contextmanager
def evaluation_mode(model: RecurrentLM) -> Iterator[None]:
    """Disable dropout and gradients, and restore the mode of every module on exit."""
    # Tensors that the model keeps, such as packed weights, must stay usable in training.
    # Tensors that are created in inference_mode are not, so use no_grad.
    with torch.no_grad():
        if not model.training:
            yield
            return
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def as_id_array(ids: IdArray | Tensor | Sequence[int]) -> IdArray:
    """Return ids as a one-dimensional numpy array of integers; numpy arrays are not copied.

    Raises:
        SourceError: the ids are not integers in one dimension.
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asanyarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)  # An empty list becomes a float array.
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise SourceError(
            f"ids must be a 1-D array of integers, not {array.dtype} of shape {array.shape}"
        )
    return array


def steps_per_call(model: RecurrentLM, num_rows: int, chunk: int) -> int:
    """Return the number of steps per call for `num_rows` rows: at most `chunk`, at least 1."""
    if model.has_blocked_output:
        return chunk
    return max(1, min(chunk, LOGITS_PER_CALL // (num_rows * model.config.vocab_size)))


def read_nats(
    model: RecurrentLM,
    ids: IdArray,
    starts: Sequence[int],
    lengths: Sequence[int],
    *,
    chunk: int,
) -> Iterator[tuple[IdArray, FloatArray]]:
    """Read several rows of a text in parallel, each from the zero state to its end.

    Row r reads ids[starts[r] : starts[r] + lengths[r]] and predicts the id after each of these.

    Args:
        model: the model.
        ids: (N,) integers.
        starts: the index of the first id of each row.
        lengths: the number of ids that each row reads, in descending order. Rows that have ended
            are removed from the batch.
        chunk: maximum number of steps in one call of the model.

    Yields:
        (targets, nats) for each chunk, both of shape (active rows, steps): the predicted ids
        (int64) and their surprisal in nats (float64).
    """
    assert all(a >= b for a, b in pairwise(lengths)), "lengths must be in descending order"
    rows, reader = len(lengths), select_reader(model)
    state = model.zero_state(rows)
    time = 0
    while rows and time < lengths[0]:
        # The chunk ends with the shortest active row, so that all rows have the same length.
        steps = min(steps_per_call(model, rows, chunk), lengths[rows - 1] - time)
        block = np.stack(
            [ids[start + time : start + time + steps + 1] for start in starts[:rows]]
        ).astype(np.int64)
        tokens = torch.from_numpy(block).to(model.device)
        with evaluation_mode(model):
            nats, state = reader.read(tokens, state)
        yield block[:, 1:], nats.cpu().numpy().astype(np.float64, copy=False)
        time += steps
        while rows and lengths[rows - 1] <= time:
            rows -= 1
        state = tuple(part[:, :rows].contiguous() for part in state)
