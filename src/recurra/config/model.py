"""Configuration of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from recurra.config.backends import BACKEND_MODULES, PRECISION_TRAITS
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
    PrecisionName = Literal[tuple(PRECISION_TRAITS)]
FirstWeights = Literal["uniform", "normal", "orthogonal"]

USUAL_EMBEDDING = 64
MAX_UNITS = 2**16
"""Maximum size of a layer or an embedding; limits the memory that untrusted files can request."""
MAX_LAYERS = 256


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network architecture: embedding or one-hot input, stacked recurrent layers, output layer.

    Examples:
        >>> from recurra.config import ModelConfig
        >>> config = ModelConfig(cell="gru", hidden_size=128, tie_weights=True)
        >>> config.embedding_size
        128
    """

    cell: CellName = "lstm"
    """Recurrent cell; none is a feed-forward layer without a hidden state."""

    hidden_size: int = 256
    """Number of units in each recurrent layer."""

    vocab_size: Annotated[int, tyro.conf.Suppress] = 2
    """Vocabulary size; set from the text at the start of training."""

    num_layers: int = 1
    """Number of stacked recurrent layers."""

    residual: bool = False
    """Wrap each recurrent layer in a residual block with normalization, a gate and a feed-forward
    layer; requires embedding_size equal to hidden_size."""

    embedding_size: int = USUAL_EMBEDDING
    """Size of the input embedding; 0 means one-hot input, as in Dive into Deep Learning. The
    default 64 is replaced by hidden_size if residual or tie_weights is set."""

    dropout: float = 0.0
    """Dropout probability between recurrent layers, or on the output of each residual branch."""

    output_dropout: float = 0.0
    """Dropout probability between the last recurrent layer and the output layer."""

    weight_dropout: float = 0.0
    """Dropout probability of the recurrent weights (DropConnect); one mask per window."""

    zoneout: float = 0.0
    """Probability that a unit of the hidden state keeps its previous value at a step (zoneout);
    requires the slower reference backend."""

    locked_dropout: bool = False
    """Use the same dropout mask at all steps of a window (variational dropout) instead of a new
    mask at each step."""

    tie_weights: bool = False
    """Share the weights of the embedding and the output layer; requires embedding_size equal to
    hidden_size."""

    init: FirstWeights = "uniform"
    """Weight initialization: uniform as in torch.nn; normal(0, 0.01) with zero biases, as in Dive
    into Deep Learning; or orthogonal recurrent weights with uniform input weights."""

    forget_bias: float = 0.0
    """Value added to the initial bias of the LSTM forget gate; 1 favours remembering at the start
    of training."""

    chrono: int = 0
    """Chrono initialization of the input and forget gate biases for dependencies of up to this many
    steps; 0 disables it."""

    backend: BackendName = "auto"
    """Implementation of the recurrent layers: auto (the fastest available), reference, bptt,
    library (torch.nn) or native (compiled kernels)."""

    precision: PrecisionName = "fp32"
    """Number format of the operands of matrix products: fp32, tf32 (10 instead of 23 bits of the
    fraction, on NVIDIA GPUs from Ampere on; fp32 on devices without TF32), bf16 or fp16. States,
    gradients and weights stay fp32."""

    def __post_init__(self) -> None:
        if (self.residual or self.tie_weights) and self.embedding_size == USUAL_EMBEDDING:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        require_types(self)
        require_choices(
            self,
            init=FirstWeights,
        )
        require_known("cell", self.cell, CELL_TRAITS, "recurra.register_cell")
        require_known("backend", self.backend, ("auto", *BACKEND_MODULES))
        require_known("precision", self.precision, PRECISION_TRAITS)
        self._check_sizes()
        for name in ("dropout", "output_dropout", "weight_dropout", "zoneout"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be at least 0 and less than 1")
        for name in ("tie_weights", "residual"):
            require(
                not getattr(self, name) or self.embedding_size == self.hidden_size,
                f"{name} requires embedding_size ({self.embedding_size}) equal to hidden_size"
                f" ({self.hidden_size})",
            )
        require(abs(self.forget_bias) <= MAX_FLOAT, "forget_bias must be finite")
        self._check_gates()

    @property
    def traits(self) -> CellTraits:
        """The traits of the configured cell."""
        return CELL_TRAITS[self.cell]

    def _check_gates(self) -> None:
        traits = self.traits
        with_gate = ", ".join(t.name for t in CELL_TRAITS.values() if t.has_forget_gate)
        require(
            self.chrono == 0 or traits.has_forget_gate,
            f"chrono applies to {with_gate} only; {self.cell} has no forget gate",
        )
        require(
            self.chrono == 0 or self.chrono > 2,
            f"chrono is {self.chrono}; it must be greater than 2, or 0 to disable it",
        )
        require(
            self.chrono == 0 or self.forget_bias == 0.0,
            "chrono already sets the forget bias; remove chrono or forget_bias",
        )
        require(
            self.zoneout == 0.0 or traits.reads_state,
            f"zoneout requires gates that depend on the state; those of {self.cell} do not",
        )
        require(
            self.zoneout == 0.0 or self.backend in ("auto", "reference"),
            f"zoneout requires the reference backend, not {self.backend}",
        )
        require(
            self.forget_bias == 0.0 or traits.has_forget_gate,
            f"forget_bias applies to {with_gate} only; {self.cell} has no forget gate",
        )
        require(
            self.embedding_size > 0 or not traits.changes_inputs,
            f"cell {self.cell} cannot use one-hot inputs; set embedding_size to a positive value",
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
