"""Table of the recurrent cells and their traits.

`CELL_TRAITS` is the only list of cells. The class in `implementation` contains the equations of a
cell. It is imported on first use, so that this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from recurra.config.checks import MAX_FLOAT, require, require_types
from recurra.errors import ConfigError

_PACKAGE = "recurra.recurrence.cells"


@dataclass(frozen=True, kw_only=True)
class CellTraits:
    """Traits of a cell that the configuration, the recurrent layers and the recipe depend on.

    Examples:
        >>> from recurra.config.cells import cell_traits
        >>> traits = cell_traits("lstm")
        >>> traits.num_gates, traits.num_states, traits.has_forget_gate
        (4, 2, True)
    """

    name: str
    """The name in `ModelConfig.cell`."""

    implementation: str
    """The `recurrence.cells.Cell` subclass with the equations, as `module:class`."""

    num_gates: int
    """Number of row blocks of W_ih; each has H rows."""

    num_states: int = 1
    """Number of tensors in the state; each has shape (B, H)."""

    reads_state: bool = True
    """Whether the gates depend on the state through W_hh. If not, all matrix products are computed
    for all steps at once."""

    changes_inputs: bool = False
    """Whether a step modifies its inputs before the product with W_ih. If so, the product cannot be
    computed for all steps at once, and the inputs cannot be token ids."""

    has_forget_gate: bool = False
    """Whether the first two gates are an input and a forget gate, as in the LSTM. If so,
    `forget_bias` and `chrono` apply."""

    lr_factor: float = 1.0
    """Learning rate that the recipe chooses, relative to that of the LSTM."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.num_gates >= 1, "num_gates must be at least 1")
        require(self.num_states >= 0, "num_states must not be negative")
        require(0.0 < self.lr_factor <= MAX_FLOAT, "lr_factor must be positive and finite")


CELL_TRAITS: dict[str, CellTraits] = {
    traits.name: traits
    for traits in (
        CellTraits(
            name="rnn",
            implementation=f"{_PACKAGE}.elman:TanhCell",
            num_gates=1,
            lr_factor=1 / 3,
        ),
        CellTraits(
            name="rnn-relu",
            implementation=f"{_PACKAGE}.elman:ReluCell",
            num_gates=1,
            lr_factor=1 / 3,
        ),
        CellTraits(
            name="gru",
            implementation=f"{_PACKAGE}.gru:GruCell",
            num_gates=3,
            lr_factor=2 / 3,
        ),
        CellTraits(
            name="lstm",
            implementation=f"{_PACKAGE}.lstm:LstmCell",
            num_gates=4,
            num_states=2,
            has_forget_gate=True,
        ),
        CellTraits(
            name="lstm-ln",
            implementation=f"{_PACKAGE}.lstm_variants:LayerNormLstmCell",
            num_gates=4,
            num_states=2,
            has_forget_gate=True,
        ),
        CellTraits(
            name="mogrifier",
            implementation=f"{_PACKAGE}.lstm_variants:MogrifierCell",
            num_gates=4,
            num_states=2,
            changes_inputs=True,
            has_forget_gate=True,
        ),
        CellTraits(
            name="mingru",
            implementation=f"{_PACKAGE}.linear:MinGruCell",
            num_gates=2,
            reads_state=False,
            lr_factor=1 / 4,
        ),
        CellTraits(
            name="minlstm",
            implementation=f"{_PACKAGE}.linear:MinLstmCell",
            num_gates=3,
            reads_state=False,
            lr_factor=1 / 4,
        ),
        CellTraits(
            name="sru",
            implementation=f"{_PACKAGE}.linear:SruCell",
            num_gates=4,
            reads_state=False,
            lr_factor=1 / 4,
        ),
        CellTraits(
            name="rglru",
            implementation=f"{_PACKAGE}.linear:RgLruCell",
            num_gates=3,
            reads_state=False,
            lr_factor=1 / 4,
        ),
        CellTraits(
            name="none",
            implementation=f"{_PACKAGE}.feedforward:FeedForwardCell",
            num_gates=1,
            num_states=0,
            reads_state=False,
            lr_factor=1 / 4,
        ),
    )
}
"""The traits of each cell, by name."""


def cell_traits(name: str) -> CellTraits:
    """Return the traits of a cell.

    Raises:
        ConfigError: no cell has this name; the message lists the available names.
    """
    if name not in CELL_TRAITS:
        raise ConfigError(f"unknown cell {name!r}; choose one of {', '.join(CELL_TRAITS)}")
    return CELL_TRAITS[name]
