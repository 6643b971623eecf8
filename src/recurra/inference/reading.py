"""Run a model over ids in evaluation mode, in chunks, several rows in parallel.

Memory stays bounded whatever the length of the text: of a memory-mapped file, only the chunk that
is being read becomes int64, and the logits of one call never exceed `LOGITS_PER_CALL` numbers.

Knows no vocabulary, no text and no perplexity; those are made from the nats that come out of here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from recurra.errors import SourceError

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM

IdArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# 64 MiB of fp32 logits: large enough for one efficient matrix product, small for any machine.
LOGITS_PER_CALL = 2**24


@contextmanager
def evaluation_mode(model: RecurrentLM) -> Iterator[None]:
    """No dropout and no gradients inside; every module's mode comes back exactly as it was."""
    # no_grad rather than inference_mode: a tensor that the model keeps (packed weights, say)
    # must stay usable when training continues.
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
    """The ids as a one-dimensional integer numpy array; an array of numpy is not copied.

    Raises:
        SourceError: the ids are not integers in one dimension.
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asanyarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)  # an empty list has no integer type
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise SourceError(
            f"ids must be whole numbers in one dimension, not {array.dtype} of shape {array.shape}"
        )
    return array


def steps_per_call(model: RecurrentLM, num_rows: int, chunk: int) -> int:
    """How many steps of `num_rows` rows to read at once: `chunk`, or what the logits allow."""
    return max(1, min(chunk, LOGITS_PER_CALL // (num_rows * model.config.vocab_size)))


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Surprisal of each target in nats: -log softmax(logits)[target].

    Shapes: logits (..., V), targets (...) int64; the result (...), in float64 where the device
    has it (all but mps), so that a uniform model comes out at exactly log V.
    """
    exact = logits.float() if logits.device.type == "mps" else logits.double()
    chosen = exact.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return exact.logsumexp(-1) - chosen


def read_nats(
    model: RecurrentLM,
    ids: IdArray,
    starts: Sequence[int],
    lengths: Sequence[int],
    *,
    chunk: int,
) -> Iterator[tuple[IdArray, FloatArray]]:
    """Read several rows of one text in parallel, each from the zero state, carried to its end.

    Row r reads ids[starts[r] : starts[r] + lengths[r]] and predicts, after each, the next id.
    The rows must come longest first: a row that has ended leaves the batch.

    Yields:
        (targets, nats) for one chunk of time, both (rows still reading, steps): the ids that were
        predicted (int64) and their surprisal in nats (float64).
    """
    assert all(a >= b for a, b in pairwise(lengths)), "longest row first"
    rows = len(lengths)
    state = model.zero_state(rows)
    time = 0
    while rows and time < lengths[0]:
        # A step that would leave a row behind ends the chunk, so that each call is a rectangle.
        steps = min(steps_per_call(model, rows, chunk), lengths[rows - 1] - time)
        block = np.stack(
            [ids[start + time : start + time + steps + 1] for start in starts[:rows]]
        ).astype(np.int64)
        tokens = torch.from_numpy(block).to(model.device)
        with evaluation_mode(model):
            logits, state = model(tokens[:, :-1], state)
            nats = token_nats(logits, tokens[:, 1:])
        yield block[:, 1:], nats.cpu().numpy().astype(np.float64, copy=False)
        time += steps
        while rows and lengths[rows - 1] <= time:
            rows -= 1
        state = tuple(part[:, :rows].contiguous() for part in state)
