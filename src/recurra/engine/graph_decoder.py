"""Generate tokens by replaying a graph for each step, without waiting for the device in between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recurra.engine import device_sampling
from recurra.engine.decoder import Decoder
from recurra.engine.graph_recorder import GraphRecorder, RepeatedOperations
from recurra.engine.sampling import Ids, Logits, Sampler
from recurra.errors import NonFiniteError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State

MAX_STEPS, MAX_TOKENS = 1024, 2**22
"""Maximum number of steps between two transfers of tokens to the host, and of tokens in one
transfer."""


class GraphDecoder(Decoder):
    """Decoder that computes the logits and draws the tokens of a step in one graph; see `Decoder`.

    Args:
        model, num_samples: as for `Decoder`.
        recorder: records graphs on the device of the model.
    """

    generates_ahead = True

    @classmethod
    def unsupported(cls, model: RecurrentLM) -> str | None:
        """Return why this decoder cannot generate with the model, or None if it can."""
        if model.backend == "native":
            return "a graph cannot record calls of the compiled kernels"
        return None

    def __init__(self, model: RecurrentLM, num_samples: int, recorder: GraphRecorder) -> None:
        super().__init__(model, num_samples)
        self._recorder = recorder
        self._steps: _Steps | None = None

    def decode(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Generate tokens; see `Decoder.decode`."""
        blocks: list[Ids] = []
        limit = max_steps(self.num_samples)
        for first in range(0, num_steps, limit):
            count = min(limit, num_steps - first)
            block = self._decode_block(blocks[-1][-1] if blocks else tokens, count, sampler)
            if len(block):
                blocks.append(block)
            if len(block) < count:
                break
        if not blocks:
            raise NonFiniteError("a logit is NaN or infinite; the model's weights are damaged")
        return np.concatenate(blocks)

    def _decode_block(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Generate at most `max_steps` tokens for each sample; return the valid ones."""
        # A tensor that is created in inference mode cannot be overwritten outside of it, but later
        # blocks overwrite the tensors of this one.
        with torch.inference_mode(False), torch.no_grad(), self._recorder.on_stream():
            if self._steps is None or self._steps.sampler is not sampler:
                self._steps = None
                self._recorder.discard_graphs()
                self._steps = _Steps(self.model, sampler, self._recorder)
            uniforms = None if sampler.is_greedy else sampler.uniforms(num_steps)
            self._steps.start(tokens, self.state, uniforms)
            for _ in range(num_steps):
                self._steps.execute()
            chosen = self._steps.read()
            self.state = tuple(part.clone() for part in self._steps.state)
        return chosen


def max_steps(num_samples: int) -> int:
    """Return the maximum number of steps between two transfers of tokens to the host."""
    return max(1, min(MAX_STEPS, MAX_TOKENS // num_samples))


class _Steps:
    """The tensors and the operations of the steps with one sampler.

    From the first step with a NaN or infinite logit on, steps change neither tokens nor state.
    """

    def __init__(self, model: RecurrentLM, sampler: Sampler, recorder: GraphRecorder) -> None:
        self.sampler, self._model = sampler, model
        samples, vocabulary = sampler.config.num_samples, model.config.vocab_size
        device, steps = model.device, max_steps(samples)
        self.state: State = model.zero_state(samples)
        self._tokens = torch.zeros(samples, dtype=torch.int64, device=device)
        self._chosen = torch.zeros(steps, samples, dtype=torch.int64, device=device)
        self._uniforms = torch.zeros(steps, samples, dtype=torch.float64, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._num_valid = torch.zeros((), dtype=torch.int64, device=device)
        self._failed = torch.zeros((), dtype=torch.bool, device=device)
        self._banned = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._banned[sampler.banned] = True
        self._seen: Tensor | None = None
        if sampler.seen is not None:
            self._seen = torch.zeros(samples, vocabulary, dtype=torch.bool, device=device)
        self._repeated = RepeatedOperations(recorder)

    def start(self, tokens: Ids, state: State, uniforms: Logits | None) -> None:
        """Copy the inputs of the first step to the device; see `Decoder.decode`.

        Args:
            tokens: (S,) the last token of each sample.
            state: the state before these tokens, each tensor (L, S, H).
            uniforms: (steps, S) random numbers in [0, 1), or None for greedy decoding.
        """
        self._tokens.copy_(torch.from_numpy(tokens))
        for own, part in zip(self.state, state, strict=True):
            own.copy_(part)
        if uniforms is not None:
            self._uniforms[: len(uniforms)].copy_(torch.from_numpy(uniforms))
        if self._seen is not None and self.sampler.seen is not None:
            self._seen.copy_(torch.from_numpy(self.sampler.seen))
        for counter in (self._step, self._num_valid, self._failed):
            counter.zero_()

    def execute(self) -> None:
        """Compute one step."""
        self._repeated.execute(self._operations)

    def read(self) -> Ids:
        """Return the tokens of the valid steps, (valid steps, S), and update the sampler."""
        if self._seen is not None and self.sampler.seen is not None:
            self.sampler.seen[...] = self._seen.cpu().numpy()
        chosen = self._chosen[: int(self._num_valid)]
        return chosen.to("cpu", copy=True).numpy()

    def _operations(self) -> None:
        logits, after = self._model(self._tokens[:, None], self.state)
        logits = logits[:, -1].to(torch.float64)
        failed = self._failed | ~torch.isfinite(logits.amax(-1)).all()
        uniforms = None
        if not self.sampler.is_greedy:
            uniforms = torch.index_select(self._uniforms, 0, self._step)[0]
        chosen = device_sampling.choose(
            logits, uniforms, self.sampler.config, banned=self._banned, seen=self._seen
        )
        self._write(failed, torch.where(failed, self._tokens, chosen), after)

    def _write(self, failed: Tensor, chosen: Tensor, after: State) -> None:
        """Write the results of a step, which are the inputs of the next one."""
        self._failed.copy_(failed)
        self._chosen.index_copy_(0, self._step, chosen[None])
        self._tokens.copy_(chosen)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        for own, part in zip(self.state, after, strict=True):
            own.copy_(torch.where(failed, own, part))
        self._num_valid.add_(~failed)
        self._step.add_(1)
