"""The recurrent cells by name, with the traits that configuration, equations and recipe depend on.

`CELL_TRAITS` is the only list of cells. The equations of a cell are in the class that its
`implementation` names, which is imported when the cell is first used: this module does not import
torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from recurra.errors import ConfigError

_PACKAGE = "recurra.recurrence.cells"


@dataclass(frozen=True, kw_only=True)
class CellTraits:
    """Traits of one cell."""

    name: str
    """The name in `ModelConfig.cell`."""

    implementation: str
    """The class with the equations, as `module:class`: a subclass of `recurrence.cells.Cell`."""

    num_gates: int
    """Row blocks of W_ih, each of H rows."""

    num_states: int = 1
    """Tensors of the state, each (B, H)."""

    reads_state: bool = True
    """Whether the gates read the state, through W_hh. If not, all products are computed for all
    steps at once."""

    changes_inputs: bool = False
    """Whether a step changes its inputs before their product with W_ih. The product can then not
    be computed for all steps at once, and the inputs cannot be token ids."""

    has_forget_gate: bool = False
    """Whether the first two gates are an input and a forget gate, as in the LSTM, so that
    `forget_bias` and `chrono` apply."""

    lr_factor: float = 1.0
    """The recipe's learning rate relative to that of the LSTM."""


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
"""Every cell by its name."""


def cell_traits(name: str) -> CellTraits:
    """Return the traits of a cell.

    Raises:
        ConfigError: there is no such cell; the message lists those there are.
    """
    if name not in CELL_TRAITS:
        raise ConfigError(f"unknown cell {name!r}; there are {', '.join(CELL_TRAITS)}")
    return CELL_TRAITS[name]


def register_cell(traits: CellTraits) -> None:
    """Add a cell that is defined outside the package, for this process.

    Raises:
        ConfigError: there is a cell of this name.
    """
    if traits.name in CELL_TRAITS:
        raise ConfigError(f"there is already a cell {traits.name!r}")
    CELL_TRAITS[traits.name] = traits
