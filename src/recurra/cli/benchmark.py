"""Benchmark training and generation of each backend against torch.nn.

A training step is the forward pass, the backward pass, gradient clipping and the update. There are
two torch.nn baselines: one-hot inputs, as in Dive into Deep Learning, and an embedding of the
layer's size. The measurements of a row are interleaved, so that other load affects all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recurra.cli.benchmark_rows import GenerationRow, TrainingRow
from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import Batch, BatchStream
from recurra.engine.engine import Engine
from recurra.engine.sampling import GenerationConfig
from recurra.engine.select import select_engine
from recurra.inference.generate import generate_ids
from recurra.kernels import library
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.backends.native import PRODUCT_DTYPES
from recurra.recurrence.precision import PRECISIONS, find_precision
from recurra.runtime.distributed import SINGLE_PROCESS

STEPS_PER_ROUND = 4
PRODUCT_SIZE = 1024
"""Size of the square matrices whose product measures the peak throughput of the machine."""
_CPU_PRECISIONS = tuple(
    name
    for name, precision in PRECISIONS.items()
    if not precision.allows_tf32 and precision.product_dtype(torch.float32) in PRODUCT_DTYPES
)
"""The precisions of the compiled kernels, without tf32, which is computed in fp32 on a CPU."""
_MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

Work = Callable[[], None]


@dataclass
class Candidate:
    """An implementation that is measured in a row.

    Attributes:
        name: the name in the results.
        work: runs one round.
        baseline: the candidate that it is compared with; None for itself.
        precision: precision of the matrix products.
        units: number of steps or tokens in a round.
        seconds: measured seconds per unit, one value per round.
    """

    name: str
    work: Work
    baseline: Candidate | None = None
    precision: str = "fp32"
    units: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the seconds per unit."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The interquartile range divided by the median; 0 for a single measurement."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def measure(
    row: TrainingRow | GenerationRow, rounds: int, names: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Measure the candidates of a row.

    Args:
        row: the row to measure.
        rounds: number of measurements of each candidate.
        names: names of the candidates to measure; all of them by default.

    Yields:
        A record for each candidate: `row`, `name`, `milliseconds` (median per step or token),
        `spread`, `tokens_per_second`, `gflops`, `share` (`gflops` relative to torch's matrix
        product in the same precision and rounds), and `times_faster` (speed relative to torch.nn
        with the same input).
    """
    if isinstance(row, GenerationRow):
        candidates, tokens = _generation_candidates(row), 1
    else:
        candidates, tokens = _training_candidates(row), row.batch_size * row.num_steps
    candidates = [c for c in candidates if not names or c.name in names]
    products = {name: Candidate(name, _Product(name)) for name in _CPU_PRECISIONS}
    _measure_interleaved([*candidates, *products.values()], rounds)
    for candidate in candidates:
        rate = row.flops / candidate.median
        best = 2 * PRODUCT_SIZE**3 / products[candidate.precision].median
        baseline = candidate.baseline or candidate
        yield {
            "row": row.name,
            "name": candidate.name,
            "milliseconds": candidate.median * 1e3,
            "spread": candidate.spread,
            "tokens_per_second": tokens / candidate.median,
            "gflops": rate / 1e9,
            "share": rate / best,
            "times_faster": baseline.median / candidate.median,
        }


def product_gflops() -> dict[str, float]:
    """Return the throughput of torch's matrix product in GFLOP/s for each precision."""
    products = {name: Candidate(name, _Product(name)) for name in _CPU_PRECISIONS}
    _measure_interleaved(list(products.values()), 9)
    return {name: 2 * PRODUCT_SIZE**3 / p.median / 1e9 for name, p in products.items()}


def _measure_interleaved(candidates: Sequence[Candidate], rounds: int) -> None:
    for candidate in candidates:
        candidate.work()  # Warm up: build the kernels, pack the weights, start the threads.
    for _ in range(rounds):
        for candidate in candidates:
            # Run once unmeasured, because the previous candidate has evicted the caches.
            candidate.work()
            started = time.perf_counter()
            candidate.work()
            candidate.seconds.append((time.perf_counter() - started) / candidate.units)


class _Product:
    """The product of two square matrices with torch."""

    def __init__(self, precision: str) -> None:
        dtype = find_precision(precision).product_dtype(torch.float32)
        self._square = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype)

    def __call__(self) -> None:
        torch.mm(self._square, self._square)


def _training_candidates(row: TrainingRow) -> list[Candidate]:
    one_hot = _training_candidate("torch.nn, one-hot", _torch_step(row, has_embedding=False))
    embedding = _training_candidate("torch.nn, embedding", _torch_step(row, has_embedding=True))
    candidates = [one_hot, embedding]
    for backend in ("library", "bptt"):
        step = _recurra_step(row, backend, "fp32", 0)
        candidates.append(_training_candidate(f"{backend}, one-hot, fp32", step, one_hot))
    if not library.is_available():
        return candidates
    for precision in _CPU_PRECISIONS:
        for baseline, width in ((one_hot, 0), (embedding, row.hidden_size)):
            name = f"native, {'embedding' if width else 'one-hot'}, {precision}"
            step = _recurra_step(row, "native", precision, width)
            candidates.append(_training_candidate(name, step, baseline, precision))
    return candidates


def _training_candidate(
    name: str, step: Work, baseline: Candidate | None = None, precision: str = "fp32"
) -> Candidate:
    """Return a candidate that runs `STEPS_PER_ROUND` consecutive training steps per round."""

    def steps() -> None:
        for _ in range(STEPS_PER_ROUND):
            step()

    return Candidate(name, steps, baseline, precision, STEPS_PER_ROUND)


def _torch_step(row: TrainingRow, has_embedding: bool) -> Work:
    torch.manual_seed(0)
    hidden, vocab = row.hidden_size, row.vocab_size
    embedding = nn.Embedding(vocab, hidden) if has_embedding else None
    layer = _MODULES[row.cell](hidden if has_embedding else vocab, hidden)
    head = nn.Linear(hidden, vocab)
    modules = nn.ModuleList([layer, head] + ([embedding] if embedding is not None else []))
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
    ids, targets = torch.randint(vocab, (2, row.batch_size, row.num_steps))
    state: Any = None

    def step() -> None:
        nonlocal state
        if embedding is not None:
            inputs = embedding(ids.t())
        else:
            inputs = nn.functional.one_hot(ids.t(), vocab).float()
        if state is not None:
            state = tuple(s.detach() for s in state) if row.cell == "lstm" else state.detach()
        outputs, state = layer(inputs, state)
        logits = head(nn.functional.dropout(outputs, row.dropout).flatten(0, 1))
        loss = nn.functional.cross_entropy(logits, targets.t().flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()

    return step


def training_engine(
    row: TrainingRow, backend: str, precision: Any, embedding_size: int = 0
) -> tuple[Engine, Batch]:
    """Return the engine of a row and a batch of random tokens that it trains on."""
    torch.manual_seed(0)
    model = RecurrentLM(
        ModelConfig(
            cell=row.cell,
            vocab_size=row.vocab_size,
            hidden_size=row.hidden_size,
            embedding_size=embedding_size,
            backend=backend,
            precision=precision,
            output_dropout=row.dropout,
        )
    )
    config = TrainingConfig(
        steps=1,
        batch_size=row.batch_size,
        num_steps=row.num_steps,
        optimizer="sgd",
        lr=0.1,
        clip_norm=1.0,
    )
    length = row.batch_size * (row.num_steps + 1) * 4
    text = np.random.default_rng(0).integers(row.vocab_size, size=length)
    batch = next(BatchStream(text, config, SINGLE_PROCESS).epoch(0, 0))
    return select_engine(model, config), batch


def _recurra_step(row: TrainingRow, backend: str, precision: str, embedding_size: int) -> Work:
    engine, batch = training_engine(row, backend, precision, embedding_size)

    def step() -> None:
        engine.step(batch, 0.1)
        engine.synchronize()

    return step


def _generation_candidates(row: GenerationRow) -> list[Candidate]:
    few, many = 60, 3000
    loop = Candidate("loop over torch.nn.LSTM", _torch_generation(row, few), units=few)
    candidates = [
        loop,
        Candidate("loop over torch.nn.LSTMCell", _torch_cell_generation(row, few), loop, units=few),
        Candidate(
            "reference, fp32", _recurra_generation(row, "reference", "fp32", few), loop, units=few
        ),
    ]
    if library.is_available():
        for precision in _CPU_PRECISIONS:
            work = _recurra_generation(row, "native", precision, many)
            candidates.append(Candidate(f"native, {precision}", work, loop, precision, many))
    return candidates


def _torch_generation(row: GenerationRow, tokens: int) -> Work:
    layer, head = (
        nn.LSTM(row.vocab_size, row.hidden_size),
        nn.Linear(row.hidden_size, row.vocab_size),
    )

    @torch.no_grad()
    def generate() -> None:
        token, state = torch.zeros(1, dtype=torch.int64), None
        for _ in range(tokens):
            one_hot = nn.functional.one_hot(token, row.vocab_size).float()
            outputs, state = layer(one_hot.unsqueeze(0), state)
            token = _draw(head(outputs[0]))

    return generate


def _torch_cell_generation(row: GenerationRow, tokens: int) -> Work:
    cell = nn.LSTMCell(row.vocab_size, row.hidden_size)
    head = nn.Linear(row.hidden_size, row.vocab_size)

    @torch.no_grad()
    def generate() -> None:
        token, state = torch.zeros(1, dtype=torch.int64), None
        for _ in range(tokens):
            state = cell(nn.functional.one_hot(token, row.vocab_size).float(), state)
            token = _draw(head(state[0]))

    return generate


def _draw(logits: Tensor) -> Tensor:
    return torch.multinomial(torch.softmax(logits, dim=-1), 1)[0]


def _recurra_generation(row: GenerationRow, backend: str, precision: str, tokens: int) -> Work:
    torch.manual_seed(0)
    model = RecurrentLM(
        ModelConfig(
            cell="lstm",
            vocab_size=row.vocab_size,
            hidden_size=row.hidden_size,
            embedding_size=0,
            backend=backend,
            precision=precision,
        )
    ).eval()
    config = GenerationConfig(max_new_tokens=tokens, seed=0)

    def generate() -> None:
        for _ in generate_ids(model, [0], config):
            pass

    return generate
