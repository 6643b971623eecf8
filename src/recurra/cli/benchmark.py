"""Benchmarks of training and generation: every backend and torch.nn, interleaved.

Whole training steps: forward, backward, clip, update. torch.nn stands here as the book uses it,
with one-hot vectors, and as a careful user would, with an embedding as wide as the layer. All of a
row is measured interleaved, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import BatchStream
from recurra.engine.sampling import GenerationConfig
from recurra.engine.select import select_engine
from recurra.errors import ConfigError
from recurra.inference.generate import generate_ids
from recurra.kernels import library
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import find_cell
from recurra.recurrence.precision import PRECISIONS
from recurra.runtime.distributed import SINGLE_PROCESS

BATCH_SIZE = 32
STEPS_PER_ROUND = 4
PRODUCT_SIZE = 1024
"""Of the square matrices whose product shows what the machine can do."""
_MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

Work = Callable[[], None]


@dataclass(frozen=True)
class TrainingRow:
    """One model whose training steps are measured, 32 rows each."""

    cell: Literal["rnn", "gru", "lstm"]
    hidden_size: int
    vocab_size: int
    num_steps: int = 35

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.cell} {self.hidden_size}, V {self.vocab_size}, {self.num_steps} steps"

    @property
    def flops(self) -> int:
        """Of the products that a step cannot do without: three of each weight but the input's,
        which a lookup replaces."""
        gates = find_cell(self.cell).num_gates
        weights = gates * self.hidden_size**2 + self.hidden_size * self.vocab_size
        return 6 * BATCH_SIZE * self.num_steps * weights


@dataclass(frozen=True)
class WritingRow:
    """One LSTM that writes a single text of characters."""

    hidden_size: int
    vocab_size: int = 65

    @property
    def name(self) -> str:
        """For people."""
        return f"write, lstm {self.hidden_size}, V {self.vocab_size}"

    @property
    def flops(self) -> int:
        """Of a token's products."""
        return 2 * (4 * self.hidden_size**2 + self.hidden_size * self.vocab_size)


ROWS: tuple[TrainingRow | WritingRow, ...] = (
    TrainingRow("rnn", 512, 28),
    TrainingRow("rnn", 256, 28),
    TrainingRow("rnn", 256, 1027),
    TrainingRow("gru", 256, 28),
    TrainingRow("lstm", 256, 28),
    TrainingRow("lstm", 512, 65, 64),
    WritingRow(256),
    WritingRow(512),
)


@dataclass
class Contender:
    """One way to do a row's work.

    Attributes:
        name: for people.
        work: one round of it.
        rival: the one it is compared with.
        precision: of its products.
        units: steps, or tokens, in a round.
        seconds: of each unit, by round.
    """

    name: str
    work: Work
    rival: Contender | None = None
    precision: str = "fp32"
    units: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a unit."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def measure(
    row: TrainingRow | WritingRow, rounds: int, names: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Measure a row.

    Args:
        names: of the contenders to measure; all of them by default.

    Yields:
        For each contender: row, name, milliseconds (median of a step or token), spread, tokens per
        second, gflops, share (of what torch's matrix product of the same precision does in the same
        rounds), and times_faster (than torch.nn with the same input).
    """
    if isinstance(row, WritingRow):
        contenders, tokens = _writers(row), 1
    else:
        contenders, tokens = _trainers(row), BATCH_SIZE * row.num_steps
    contenders = [c for c in contenders if not names or c.name in names]
    products = {
        name: Contender(name, _Product(precision.product_dtype(torch.float32)))
        for name, precision in PRECISIONS.items()
    }
    _take_turns([*contenders, *products.values()], rounds)
    for contender in contenders:
        rate = row.flops / contender.median
        best = 2 * PRODUCT_SIZE**3 / products[contender.precision].median
        rival = contender.rival or contender
        yield {
            "row": row.name,
            "name": contender.name,
            "milliseconds": contender.median * 1e3,
            "spread": contender.spread,
            "tokens_per_second": tokens / contender.median,
            "gflops": rate / 1e9,
            "share": rate / best,
            "times_faster": rival.median / contender.median,
        }


def product_gflops() -> dict[str, float]:
    """What torch's matrix product does on this machine in each precision, in GFLOP/s."""
    products = {
        name: Contender(name, _Product(precision.product_dtype(torch.float32)))
        for name, precision in PRECISIONS.items()
    }
    _take_turns(list(products.values()), 9)
    return {name: 2 * PRODUCT_SIZE**3 / p.median / 1e9 for name, p in products.items()}


def chosen_rows(words: Sequence[str]) -> list[TrainingRow | WritingRow]:
    """The rows whose name holds each of some words; all of them without any.

    Raises:
        ConfigError: no row does.
    """
    rows = [row for row in ROWS if set(words) <= set(row.name.replace(",", "").split())]
    if not rows:
        names = "; ".join(row.name for row in ROWS)
        raise ConfigError(f"no row has {' '.join(words)!r} in its name; there are: {names}")
    return rows


def _take_turns(contenders: Sequence[Contender], rounds: int) -> None:
    for contender in contenders:
        contender.work()  # builds, packs, and wakes the threads
    for _ in range(rounds):
        for contender in contenders:
            # What ran before has taken the caches; that is not this one's doing.
            contender.work()
            started = time.perf_counter()
            contender.work()
            contender.seconds.append((time.perf_counter() - started) / contender.units)


class _Product:
    """torch's matrix product of two squares."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._square = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype)

    def __call__(self) -> None:
        torch.mm(self._square, self._square)


def _trainers(row: TrainingRow) -> list[Contender]:
    one_hot = _trainer("torch.nn, one-hot", _torch_step(row, embeds=False))
    embedding = _trainer("torch.nn, embedding", _torch_step(row, embeds=True))
    contenders = [one_hot, embedding]
    for backend in ("library", "bptt"):
        step = _own_step(row, backend, "fp32", 0)
        contenders.append(_trainer(f"{backend}, one-hot, fp32", step, one_hot))
    if not library.is_available():
        return contenders
    for precision in PRECISIONS:
        for rival, width in ((one_hot, 0), (embedding, row.hidden_size)):
            name = f"native, {'embedding' if width else 'one-hot'}, {precision}"
            step = _own_step(row, "native", precision, width)
            contenders.append(_trainer(name, step, rival, precision))
    return contenders


def _trainer(
    name: str, step: Work, rival: Contender | None = None, precision: str = "fp32"
) -> Contender:
    """Steps follow one another here as they do in training."""

    def steps() -> None:
        for _ in range(STEPS_PER_ROUND):
            step()

    return Contender(name, steps, rival, precision, STEPS_PER_ROUND)


def _torch_step(row: TrainingRow, embeds: bool) -> Work:
    torch.manual_seed(0)
    hidden, vocab = row.hidden_size, row.vocab_size
    embedding = nn.Embedding(vocab, hidden) if embeds else None
    layer = _MODULES[row.cell](hidden if embeds else vocab, hidden)
    head = nn.Linear(hidden, vocab)
    modules = nn.ModuleList([layer, head] + ([embedding] if embedding is not None else []))
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
    ids, targets = torch.randint(vocab, (2, BATCH_SIZE, row.num_steps))
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
        logits = head(outputs.flatten(0, 1))
        loss = nn.functional.cross_entropy(logits, targets.t().flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()

    return step


def _own_step(row: TrainingRow, backend: str, precision: str, embedding_size: int) -> Work:
    torch.manual_seed(0)
    model = RecurrentLM(
        ModelConfig(
            cell=row.cell,
            vocab_size=row.vocab_size,
            hidden_size=row.hidden_size,
            embedding_size=embedding_size,
            backend=backend,
            precision=precision,
        )
    )
    config = TrainingConfig(
        steps=1,
        batch_size=BATCH_SIZE,
        num_steps=row.num_steps,
        optimizer="sgd",
        lr=0.1,
        clip_norm=1.0,
    )
    length = BATCH_SIZE * (row.num_steps + 1) * 4
    text = np.random.default_rng(0).integers(row.vocab_size, size=length)
    stream = BatchStream(text, config, SINGLE_PROCESS)
    engine = select_engine(model, config)
    batch = next(stream.epoch(0, 0))

    def step() -> None:
        engine.step(batch, 0.1)
        engine.synchronize()

    return step


def _writers(row: WritingRow) -> list[Contender]:
    few, many = 60, 3000
    loop = Contender("loop over torch.nn.LSTM", _torch_writing(row, few), units=few)
    contenders = [
        loop,
        Contender("loop over torch.nn.LSTMCell", _torch_cell_writing(row, few), loop, units=few),
        Contender("reference, fp32", _own_writing(row, "reference", "fp32", few), loop, units=few),
    ]
    if library.is_available():
        for precision in PRECISIONS:
            work = _own_writing(row, "native", precision, many)
            contenders.append(Contender(f"native, {precision}", work, loop, precision, many))
    return contenders


def _torch_writing(row: WritingRow, tokens: int) -> Work:
    layer, head = (
        nn.LSTM(row.vocab_size, row.hidden_size),
        nn.Linear(row.hidden_size, row.vocab_size),
    )

    @torch.no_grad()
    def write() -> None:
        token, state = torch.zeros(1, dtype=torch.int64), None
        for _ in range(tokens):
            one_hot = nn.functional.one_hot(token, row.vocab_size).float()
            outputs, state = layer(one_hot.unsqueeze(0), state)
            token = _draw(head(outputs[0]))

    return write


def _torch_cell_writing(row: WritingRow, tokens: int) -> Work:
    cell = nn.LSTMCell(row.vocab_size, row.hidden_size)
    head = nn.Linear(row.hidden_size, row.vocab_size)

    @torch.no_grad()
    def write() -> None:
        token, state = torch.zeros(1, dtype=torch.int64), None
        for _ in range(tokens):
            state = cell(nn.functional.one_hot(token, row.vocab_size).float(), state)
            token = _draw(head(state[0]))

    return write


def _draw(logits: Tensor) -> Tensor:
    return torch.multinomial(torch.softmax(logits, dim=-1), 1)[0]


def _own_writing(row: WritingRow, backend: str, precision: str, tokens: int) -> Work:
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

    def write() -> None:
        for _ in generate_ids(model, [0], config):
            pass

    return write
