"""Whole training steps with the recurrent layers of torch.nn, the baseline of benchmarks/gpu.py.

A step is: one-hot inputs, nn.RNN, nn.GRU or nn.LSTM, a linear layer, the cross-entropy, the
backward pass, clipping by the norm, and torch's fused SGD or Adam. The state is carried to the next
batch. The host reads no value during a step.

The products are computed in fp32, tf32, bf16 or fp16. For the last two there are two ways, both
with weights in fp32 that the optimizer updates: `autocast`, and `copy`, a copy of the layers in the
precision, which is written anew after every update. In fp16, the loss is multiplied by a constant
and the gradients are divided by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_SCALE = 1024.0
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Setup:
    """What the steps of torch.nn compute.

    Attributes:
        cell: rnn, gru or lstm.
        optimizer: sgd or adam.
        precision: fp32, tf32, bf16 or fp16.
        way: autocast or copy for bf16 and fp16, plain for the others.
    """

    cell: str
    hidden_size: int
    vocab_size: int
    optimizer: str
    precision: str
    device: torch.device
    way: str


def ways(precision: str) -> tuple[str, ...]:
    """Return the ways to compute in a precision."""
    return ("autocast", "copy") if precision in DTYPES else ("plain",)


@contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """Let fp32 products be exact, or be rounded to TF32, in cuBLAS and in cuDNN's layers."""
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


class Network(nn.Module):
    """A recurrent layer on one-hot inputs, and a linear layer."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.layer = LAYERS[setup.cell](setup.vocab_size, setup.hidden_size)
        self.head = nn.Linear(setup.hidden_size, setup.vocab_size)
        # nn.functional.one_hot reads the largest id on the host.
        self.register_buffer("one_hot", torch.eye(setup.vocab_size))

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits (T * B, V) in fp32, and the final state, from ids (T, B)."""
        outputs, after = self.layer(nn.functional.embedding(ids, self.one_hot), state)
        return self.head(outputs.flatten(0, 1)).float(), after


class TorchSteps:
    """Training steps of torch.nn without a graph.

    Args:
        setup: what to compute.
        batches: pairs of ids and targets, each (B, T) int64 on the CPU; they are used in turn.
    """

    def __init__(self, setup: Setup, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        torch.manual_seed(0)
        self.setup = setup
        self._network = Network(setup).to(setup.device)
        self._weights = list(self._network.parameters())
        self._uses_copy = setup.way == "copy"
        self._computing = self._network
        if self._uses_copy:
            self._computing = Network(setup).to(setup.device, DTYPES[setup.precision])
            self._copy_weights()
        self._optimizer = self._new_optimizer()
        on_gpu = setup.device.type == "cuda"
        self._batches = [
            tuple(part.t().contiguous().pin_memory() if on_gpu else part.t() for part in pair)
            for pair in batches
        ]
        rows, steps = batches[0][0].shape
        self._ids, self._targets = torch.zeros(2, steps, rows, dtype=torch.int64).to(setup.device)
        self._state = self._zero_state(rows)
        self._number = 0

    def run(self, count: int) -> None:
        """Start this many steps, without waiting for them."""
        with fp32_products(self.setup.precision):
            for _ in range(count):
                ids, targets = self._batches[self._number % len(self._batches)]
                self._ids.copy_(ids, non_blocking=True)
                self._targets.copy_(targets, non_blocking=True)
                self._step()
                self._number += 1

    def _step(self) -> None:
        self._compute()

    def _compute(self) -> None:
        for parameter in self._computing.parameters():
            parameter.grad = None
        with self._autocast():
            logits, after = self._computing(self._ids, self._state)
            loss = nn.functional.cross_entropy(logits, self._targets.flatten())
        scale = LOSS_SCALE if self.setup.precision == "fp16" else 1.0
        torch.autograd.backward(loss * scale if scale != 1.0 else loss)
        with torch.no_grad():
            for part, new in zip(_parts(self._state), _parts(after), strict=True):
                part.copy_(new)
        self._update(scale)

    @torch.no_grad()
    def _update(self, scale: float) -> None:
        if self._uses_copy:
            for weight, copied in zip(self._weights, self._computing.parameters(), strict=True):
                weight.grad = torch.empty_like(weight) if weight.grad is None else weight.grad
                weight.grad.copy_(copied.grad)
        if scale != 1.0:
            torch._foreach_mul_([weight.grad for weight in self._weights], 1.0 / scale)
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        if self._uses_copy:
            self._copy_weights()

    @torch.no_grad()
    def _copy_weights(self) -> None:
        torch._foreach_copy_(list(self._computing.parameters()), self._weights)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.setup.way != "autocast":
            return nullcontext()
        # In a graph, cached copies of the weights would never be renewed.
        dtype = DTYPES[self.setup.precision]
        return torch.autocast(self.setup.device.type, dtype, cache_enabled=False)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        if self.setup.optimizer == "sgd":
            return torch.optim.SGD(self._weights, lr=0.1, fused=True)
        on_gpu = self.setup.device.type == "cuda"
        return torch.optim.Adam(self._weights, lr=1e-3, fused=True, capturable=on_gpu)

    def _zero_state(self, rows: int) -> Any:
        dtype = DTYPES[self.setup.precision] if self._uses_copy else torch.float32
        shape = (1, rows, self.setup.hidden_size)
        state = torch.zeros(shape, dtype=dtype, device=self.setup.device)
        return (state, state.clone()) if self.setup.cell == "lstm" else state


class TorchGraph(TorchSteps):
    """The same steps, each of which is one CUDA graph."""

    def __init__(self, setup: Setup, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(setup, batches)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with fp32_products(setup.precision):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._compute()
            torch.cuda.current_stream().wait_stream(stream)
            for parameter in (*self._weights, *self._computing.parameters()):
                parameter.grad = None
            with torch.cuda.graph(self._graph):
                self._compute()

    def _step(self) -> None:
        self._graph.replay()


def _parts(state: Any) -> Sequence[Tensor]:
    return state if isinstance(state, tuple) else (state,)
