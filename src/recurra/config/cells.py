"""The table of cells: one row each, read by configuration, backends, kernels and the recipe.

A new cell is a module with its equation, and one row here. A cell with kernels has two more: a
struct in kernels/source/cells.h and its row in kernels/source/kernels.h. Nothing is imported until
a cell is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class CellTraits:
    """What the rest of the package must know of a cell.

    Attributes:
        equation: where its class is, as `module:Class`; the class has `num_gates` and
            `num_states`.
        reads_state: whether gates read the state. Where they do not, all products are computed for
            all steps at once.
        has_forget_gate: whether its second gate is a forget gate, as that of the LSTM.
        needs_embedding: whether its inputs must be vectors, not token ids.
        folds_bias_hh: whether the hidden bias may be added to the projected inputs. In the GRU it
            is multiplied with the reset gate.
        time_loop: where the hand-written loop of the `bptt` backend is; None without one.
        torch_function: the function of torch that computes a layer; None without one.
        torch_mode: `mode` of the torch.nn module; None without one.
        onednn: whether torch computes it on a CPU with a fused oneDNN kernel.
        kernel: its enumerator in kernels/source/kernels.h; None without a kernel.
        lr_share: the share of the LSTM's learning rate that the recipe takes.
    """

    equation: str
    reads_state: bool = True
    has_forget_gate: bool = False
    needs_embedding: bool = False
    folds_bias_hh: bool = True
    time_loop: str | None = None
    torch_function: str | None = None
    torch_mode: str | None = None
    onednn: bool = False
    kernel: str | None = None
    lr_share: float = 1.0


_CELLS, _LOOPS = "recurra.recurrence.cells", "recurra.recurrence.backends.bptt_loops"
# The recipe's measurements are in docs/results/quality.md.
_LINEAR_SHARE = 1 / 4

CELL_TRAITS: dict[str, CellTraits] = {
    "rnn": CellTraits(
        f"{_CELLS}.book:TanhCell",
        time_loop=f"{_LOOPS}:TanhLoop",
        torch_function="rnn_tanh",
        torch_mode="RNN_TANH",
        kernel="kTanh",
        lr_share=1 / 3,
    ),
    "rnn-relu": CellTraits(
        f"{_CELLS}.book:ReluCell",
        time_loop=f"{_LOOPS}:ReluLoop",
        torch_function="rnn_relu",
        torch_mode="RNN_RELU",
        kernel="kRelu",
        lr_share=1 / 3,
    ),
    "gru": CellTraits(
        f"{_CELLS}.book:GruCell",
        folds_bias_hh=False,
        time_loop=f"{_LOOPS}:GruLoop",
        torch_function="gru",
        torch_mode="GRU",
        kernel="kGru",
        lr_share=2 / 3,
    ),
    "lstm": CellTraits(
        f"{_CELLS}.book:LstmCell",
        has_forget_gate=True,
        time_loop=f"{_LOOPS}:LstmLoop",
        torch_function="lstm",
        torch_mode="LSTM",
        onednn=True,
        kernel="kLstm",
    ),
    "lstm-ln": CellTraits(f"{_CELLS}.variants:LayerNormLstmCell", has_forget_gate=True),
    "mogrifier": CellTraits(
        f"{_CELLS}.variants:MogrifierCell", has_forget_gate=True, needs_embedding=True
    ),
    "mingru": CellTraits(f"{_CELLS}.linear:MinGruCell", reads_state=False, lr_share=_LINEAR_SHARE),
    "minlstm": CellTraits(
        f"{_CELLS}.linear:MinLstmCell", reads_state=False, lr_share=_LINEAR_SHARE
    ),
    "sru": CellTraits(f"{_CELLS}.linear:SruCell", reads_state=False, lr_share=_LINEAR_SHARE),
    "rglru": CellTraits(f"{_CELLS}.linear:RgLruCell", reads_state=False, lr_share=_LINEAR_SHARE),
    "none": CellTraits(f"{_CELLS}.book:FeedForwardCell", reads_state=False, lr_share=_LINEAR_SHARE),
}
"""Every cell by its name in `ModelConfig.cell`."""


def load_class(place: str) -> Any:
    """Import `module:Class`, the form in which the tables name classes."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
