"""The models that `recurra bench` measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recurra.errors import ConfigError
from recurra.recurrence.cells import find_cell

BATCH_SIZE = 32


@dataclass(frozen=True)
class TrainingRow:
    """A model whose training steps are measured.

    Attributes:
        dropout: probability of dropping a unit of the layer's outputs.
    """

    cell: Literal["rnn", "gru", "lstm"]
    hidden_size: int
    vocab_size: int
    num_steps: int = 35
    batch_size: int = BATCH_SIZE
    dropout: float = 0.0

    @property
    def name(self) -> str:
        """The name in the results."""
        parts = [f"{self.cell} {self.hidden_size}, V {self.vocab_size}, {self.num_steps} steps"]
        if self.batch_size != BATCH_SIZE:
            parts.append(f"{self.batch_size} rows")
        if self.dropout:
            parts.append(f"dropout {self.dropout}")
        return ", ".join(parts)

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of a training step.

        Each weight has three products: one forward and two backward. The product with the input
        weights is not counted, because a lookup replaces it.
        """
        gates = find_cell(self.cell).num_gates
        weights = gates * self.hidden_size**2 + self.hidden_size * self.vocab_size
        return 6 * self.batch_size * self.num_steps * weights


@dataclass(frozen=True)
class GenerationRow:
    """An LSTM that generates a single sample."""

    hidden_size: int
    vocab_size: int = 65

    @property
    def name(self) -> str:
        """The name in the results."""
        return f"generation, lstm {self.hidden_size}, V {self.vocab_size}"

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products for one token."""
        return 2 * (4 * self.hidden_size**2 + self.hidden_size * self.vocab_size)


ROWS: tuple[TrainingRow | GenerationRow, ...] = (
    TrainingRow("rnn", 512, 28),
    TrainingRow("rnn", 256, 28),
    TrainingRow("rnn", 256, 1027),
    TrainingRow("gru", 256, 28),
    TrainingRow("lstm", 256, 28),
    TrainingRow("lstm", 256, 28, dropout=0.3),
    TrainingRow("lstm", 512, 65, 64),
    GenerationRow(256),
    GenerationRow(512),
)


def chosen_rows(words: Sequence[str]) -> list[TrainingRow | GenerationRow]:
    """Return the rows whose name contains all of the words; without words, all rows.

    Raises:
        ConfigError: no row contains all of the words.
    """
    rows = [row for row in ROWS if set(words) <= set(row.name.replace(",", "").split())]
    if not rows:
        names = "; ".join(row.name for row in ROWS)
        raise ConfigError(f"no row contains {' '.join(words)!r}; the rows are: {names}")
    return rows
