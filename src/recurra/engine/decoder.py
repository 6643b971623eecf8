"""The interface of decoders, which generate tokens, and the plain decoder.

A decoder generates several samples in parallel. Its state is explicit: it can be copied,
saved and restored, and generation continues exactly from it.
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
"""Prompt tokens in one call of the model, enough for efficient matrix products."""


class Decoder(ABC):
    """Generates tokens with one model, which must be in evaluation mode during every call.

    Shapes: S samples, V tokens in the vocabulary.

    Attributes:
        model, num_samples: the arguments.
        state: the recurrent state after the tokens read so far, each tensor (L, S, H).
        generates_ahead: whether one call of `decode` for many steps is faster than many calls.

    Args:
        model: a model for which `unsupported` returns None, on its device.
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
        """Reset the state, and read a prompt that all samples share.

        Args:
            ids: (N,) token ids. With N = 0 the logits are those of the zero state.

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

    def step(self, tokens: Ids) -> Logits:
        """Read one token of each sample, (S,); return the logits of the next, (S, V) float64."""
        if torch.is_grad_enabled():
            # Entering no_grad again for every token would take 2 % of a step.
            with torch.no_grad():
                return self.step(tokens)
        ids = torch.from_numpy(tokens).to(self.model.device)
        logits, self.state = self.model(ids[:, None], self.state)
        return _to_numpy(logits[:, -1])

    @abstractmethod
    def decode(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Generate `num_steps` tokens for each sample.

        Args:
            tokens: (S,) int64, the most recent tokens, which the decoder has not read yet.
            num_steps: number of tokens to generate for each sample.
            sampler: chooses the tokens.

        Returns:
            (num_steps, S) int64. A decoder that generates ahead returns fewer rows if the logits
            of a later step are NaN or infinite.

        Raises:
            NonFiniteError: the logits of the first step are NaN or infinite.
        """


class PlainDecoder(Decoder):
    """Decoder for any model and device, with one call of the model per token; see `Decoder`."""

    @classmethod
    def unsupported(cls, model: RecurrentLM) -> str | None:
        """Return None: every model is supported."""
        return None

    def decode(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Generate tokens; see `Decoder.decode`."""
        chosen = []
        for _ in range(num_steps):
            tokens = sampler.choose(self.step(tokens))
            chosen.append(tokens)
        return np.array(chosen)


def _to_numpy(logits: Tensor) -> Logits:
    """Return a float64 copy on the CPU, which the sampler may overwrite."""
    return logits.float().cpu().numpy().astype(np.float64)
