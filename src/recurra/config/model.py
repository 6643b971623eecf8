"""Configuration of the network."""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from recurra.config.backends import BACKEND_MODULES, OPERAND_DTYPES
from recurra.config.cells import CELL_TRAITS, CellTraits
from recurra.config.checks import (
    MAX_FLOAT,
    require,
    require_choices,
    require_known,
    require_types,
)
from recurra.config.text import MAX_VOCABULARY

if TYPE_CHECKING:
    CellName = str
    BackendName = str
    PrecisionName = str
else:
    CellName = Literal[tuple(CELL_TRAITS)]
    BackendName = Literal["auto", *BACKEND_MODULES]
    PrecisionName = Literal[tuple(OPERAND_DTYPES)]
FirstWeights = Literal["uniform", "normal", "orthogonal"]

USUAL_EMBEDDING = 64
MAX_UNITS = 2**16
"""Largest width of a layer or an embedding; a file that asks for more is not from here."""
MAX_LAYERS = 256


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: embedding or one-hot, stacked recurrent layers, output layer."""

    cell: CellName = "lstm"
    """The recurrence; none is the same network without a hidden state."""

    hidden_size: int = 256
    """Units in each layer."""

    vocab_size: Annotated[int, tyro.conf.Suppress] = 2
    """Rows of the input and output tables (set from the text when a run is trained)."""

    num_layers: int = 1
    """Number of stacked recurrent layers."""

    residual: bool = False
    """Put each layer in a residual block with a gate and a feed-forward part; needs embedding_size
    equal to hidden_size."""

    embedding_size: int = USUAL_EMBEDDING
    """Width of the learned input embedding; 0 feeds the one-hot vector, as the book does. Left at
    64 it becomes hidden_size where residual or tie_weights need that."""

    dropout: float = 0.0
    """Probability of dropping a unit between two layers, or of what a residual block adds."""

    output_dropout: float = 0.0
    """Probability of dropping a unit of the last layer, before the output layer."""

    weight_dropout: float = 0.0
    """Probability of dropping a recurrent weight for a whole window."""

    zoneout: float = 0.0
    """Probability that a unit of the state stays as it was for a step (slow: by the plain equations
    only)."""

    locked_dropout: bool = False
    """Drop the same units at all steps of a window (variational dropout) instead of drawing anew at
    every step."""

    tie_weights: bool = False
    """Use the embedding as the output layer's weight; needs embedding_size equal to hidden_size."""

    init: FirstWeights = "uniform"
    """First weights: torch's uniform, the book's normal(0, 0.01) with zero biases, or orthogonal
    recurrent matrices with uniform input weights."""

    forget_bias: float = 0.0
    """Added to the LSTM forget gate's first bias; 1 helps it to remember from the start."""

    chrono: int = 0
    """Chrono initialisation of the input and forget gates' biases: memories of up to this many
    steps; 0 for none."""

    backend: BackendName = "auto"
    """Implementation of the recurrent layers: auto, reference, bptt, library (torch.nn) or native
    (the compiled kernels)."""

    precision: PrecisionName = "fp32"
    """Number format of the matrix products; states, gradients and weights stay fp32."""

    def __post_init__(self) -> None:
        if (self.residual or self.tie_weights) and self.embedding_size == USUAL_EMBEDDING:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        require_types(self)
        require(
            self.cell in CELL_TRAITS,
            f"cell is {shortened(self.cell)}; it must be one of {', '.join(CELL_TRAITS)}",
        )
        require_choices(
            self,
            init=FirstWeights,
        )
        require_known("cell", self.cell, CELL_TRAITS)
        require_known("backend", self.backend, ("auto", *BACKEND_MODULES))
        require_known("precision", self.precision, OPERAND_DTYPES)
        self._check_sizes()
        for name in ("dropout", "output_dropout", "weight_dropout", "zoneout"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be at least 0 and below 1")
        for name in ("tie_weights", "residual"):
            require(
                not getattr(self, name) or self.embedding_size == self.hidden_size,
                f"{name} needs embedding_size equal to hidden_size"
                f" ({self.embedding_size} and {self.hidden_size})",
            )
        require(abs(self.forget_bias) <= MAX_FLOAT, "forget_bias must be finite")
        self._check_gates()

    @property
    def traits(self) -> CellTraits:
        """The cell's row in the table of cells."""
        return CELL_TRAITS[self.cell]

    def _check_gates(self) -> None:
        traits = self.traits
        with_gate = ", ".join(t.name for t in CELL_TRAITS.values() if t.has_forget_gate)
        require(
            self.chrono == 0 or traits.has_forget_gate,
            f"chrono is for {with_gate}; {self.cell} has no such gates",
        )
        require(self.chrono == 0 or self.chrono > 2, "chrono must be above 2, or 0 for none")
        require(
            self.chrono == 0 or self.forget_bias == 0.0, "chrono sets the forget bias: drop one"
        )
        require(
            self.zoneout == 0.0 or traits.reads_state,
            f"zoneout is for cells whose gates read the state; those of {self.cell} do not",
        )
        require(
            self.zoneout == 0.0 or self.backend in ("auto", "reference"),
            f"zoneout is computed by the reference backend, not by {self.backend}",
        )
        require(
            self.forget_bias == 0.0 or traits.has_forget_gate,
            f"forget_bias is for {with_gate}; {self.cell} has no such gate",
        )
        require(
            self.embedding_size > 0 or not traits.changes_inputs,
            f"the {self.cell} cell changes its inputs, which one-hot vectors do not allow; give it"
            " an embedding_size",
        )

    def _check_sizes(self) -> None:
        require(self.hidden_size >= 1, "hidden_size must be at least 1")
        require(self.vocab_size >= 1, "vocab_size must be at least 1")
        require(self.chrono <= 10**9, "chrono must be at most 1e9")
        require(self.num_layers >= 1, "num_layers must be at least 1")
        require(self.embedding_size >= 0, "embedding_size must be 0 (one-hot) or positive")
        largest = {
            "hidden_size": MAX_UNITS,
            "embedding_size": MAX_UNITS,
            "num_layers": MAX_LAYERS,
            "vocab_size": MAX_VOCABULARY,
        }
        for name, limit in largest.items():
            require(getattr(self, name) <= limit, f"{name} must be at most {limit:,}")
