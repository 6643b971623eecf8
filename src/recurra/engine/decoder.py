"""The interface of decoders, which generate tokens, and the plain decoder.

A decoder reads and generates tokens of some samples side by side. Its state is explicit: it can be
copied, set, and saved, and generation continues exactly from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recurra.engine.sampling import Ids, Logits, Sampler
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State

PROMPT_CHUNK = 1024
"""Tokens of a prompt in one call of the model: enough for efficient matrix products."""


class Decoder(ABC):
    """Generates tokens with one model. The model is in evaluation mode during every call.

    Shapes: S samples, V tokens of the vocabulary.

    Attributes:
        state: what follows depends on it and on the tokens alone; each tensor (L, S, H).
        generates_ahead: whether many steps in one call of `decode` cost less than many calls.

    Args:
        model: a model for which `unsupported` returns None.
        num_samples: S.
    """

    generates_ahead: ClassVar[bool] = False

    def __init__(self, model: RecurrentLM, num_samples: int = 1) -> None:
        self.model, self.num_samples = model, num_samples
        self.state: State = model.zero_state(num_samples)

    @classmethod
    @abstractmethod
    def unsupported(cls, model: RecurrentLM) -> str | None:
        """Return why this decoder cannot generate with the model, or None if it can."""

    @torch.no_grad()
    def prefill(self, ids: Ids) -> Logits:
        """Begin at the zero state, and read the same tokens in every sample.

        Args:
            ids: (N,); with none the output layer sees the zero state.

        Returns:
            Logits of the next token, (S, V) float64.
        """
        if len(ids) == 0:
            self.state = self.model.zero_state(self.num_samples)
            return _to_numpy(self.model.initial_logits(self.num_samples))
        state = self.model.zero_state(1)
        for first in range(0, len(ids), PROMPT_CHUNK):
            chunk = ids[first : first + PROMPT_CHUNK].astype(np.int64)
            # Only the logits of the last token are needed.
            tokens = torch.from_numpy(chunk).to(self.model.device)
            hidden, state = self.model.hidden(tokens[None], state)
        shape = (-1, self.num_samples, -1)
        self.state = tuple(part.expand(shape).contiguous() for part in state)
        return _to_numpy(self.model.logits(hidden[-1]).expand(self.num_samples, -1))

    @torch.no_grad()
    def step(self, tokens: Ids) -> Logits:
        """Read one token (S,) in each sample; return the logits of the next, (S, V) float64."""
        ids = torch.from_numpy(tokens).to(self.model.device)
        logits, self.state = self.model(ids[:, None], self.state)
        return _to_numpy(logits[:, -1])

    @abstractmethod
    def decode(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Read one more token of every sample, and generate `num_steps` of them.

        Args:
            tokens: (S,), the tokens chosen last.
            sampler: chooses tokens; it draws one random number for each sample and step.

        Returns:
            (num_steps, S) tokens; fewer where the logits after them are not finite.

        Raises:
            NonFiniteError: the logits of the first step are NaN or infinite.
        """


class PlainDecoder(Decoder):
    """Generates with any model on any device, one call of the model for each token."""

    @classmethod
    def unsupported(cls, model: RecurrentLM) -> str | None:
        """Return None: every model is supported."""
        return None

    def decode(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Generate; see `Decoder.decode`."""
        chosen = np.empty((num_steps, self.num_samples), dtype=np.int64)
        for number in range(num_steps):
            tokens = chosen[number] = sampler.choose(self.step(tokens))
        return chosen


def _to_numpy(logits: Tensor) -> Logits:
    """Return a float64 copy in the CPU's memory, which the sampler may overwrite."""
    return logits.float().cpu().numpy().astype(np.float64)
