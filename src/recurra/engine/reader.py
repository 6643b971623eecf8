"""Readers compute the surprisal of given tokens, for evaluation and scoring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import RLock

import torch
from torch import Tensor

from recurra.engine.graph_recorder import GraphRecorder, RepeatedOperations
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State

MAX_SHAPES = 4
"""Maximum number of shapes that `GraphReader` keeps buffers for."""


class Reader(ABC):
    """Computes the surprisal of tokens with one model, which must be in evaluation mode.

    Args:
        model: the model, on its device.
    """

    def __init__(self, model: RecurrentLM) -> None:
        self._model = model

    @abstractmethod
    def read(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the surprisal of each token after the first of a row.

        Args:
            tokens: (B, T + 1) int64 on the device of the model.
            state: the state before the first token, each tensor (L, B, H).

        Returns:
            (B, T) in nats, as `token_nats`, and the state after the last input.
        """


class PlainReader(Reader):
    """Reader for any model and device; see `Reader`."""

    def read(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the surprisal of each token; see `Reader.read`."""
        if self._model.has_blocked_output:
            return self._model.nats(tokens[:, :-1], tokens[:, 1:], state)
        logits, state = self._model(tokens[:, :-1], state)
        return token_nats(logits, tokens[:, 1:]), state


class GraphReader(PlainReader):
    """Reader that replays a graph from the second batch of a shape; see `Reader`.

    Args:
        model: the model, on its device.
        recorder: records graphs on this device.
    """

    def __init__(self, model: RecurrentLM, recorder: GraphRecorder) -> None:
        super().__init__(model)
        self._recorder = recorder
        self._blocks: dict[torch.Size, _Block] = {}
        self._lock = RLock()

    def read(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the surprisal of each token; see `Reader.read`.

        Threads that evaluate the same model use its buffers in turn.
        """
        # A tensor that is created in inference mode cannot be overwritten outside of it, but later
        # calls overwrite the buffers.
        normal = torch.inference_mode(False)
        with self._lock, normal, torch.no_grad(), self._recorder.on_stream():
            if tokens.shape not in self._blocks:
                if len(self._blocks) == MAX_SHAPES:
                    return super().read(tokens, state)
                self._blocks[tokens.shape] = _Block(self._recorder, tokens, state)
            block = self._blocks[tokens.shape]
            block.write(tokens, state)
            block.repeated.execute(lambda: self._read_block(block))
            return block.nats.clone(), tuple(part.clone() for part in block.state)

    def _read_block(self, block: _Block) -> None:
        """Execute the operations for one shape."""
        nats, after = super().read(block.tokens, block.state)
        block.nats.copy_(nats)
        for own, part in zip(block.state, after, strict=True):
            own.copy_(part)


class _Block:
    """The tensors that the operations for one shape read and write."""

    def __init__(self, recorder: GraphRecorder, tokens: Tensor, state: State) -> None:
        self.tokens = torch.zeros_like(tokens)
        self.state = tuple(torch.zeros_like(part) for part in state)
        self.nats = torch.zeros(
            len(tokens), tokens.shape[1] - 1, dtype=torch.float64, device=tokens.device
        )
        self.repeated = RepeatedOperations(recorder)

    def write(self, tokens: Tensor, state: State) -> None:
        """Write what the operations read."""
        self.tokens.copy_(tokens)
        for own, part in zip(self.state, state, strict=True):
            own.copy_(part)


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the surprisal of each target in nats: -log softmax(logits)[target].

    Args:
        logits: (..., V).
        targets: (...) int64.

    Returns:
        (...), in float64, or in float32 on mps. With float64, uniform logits give log V exactly.
    """
    exact = logits.float() if logits.device.type == "mps" else logits.double()
    chosen = exact.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return exact.logsumexp(-1) - chosen
