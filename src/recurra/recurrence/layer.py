"""Run a recurrent layer, or a stack of layers, with the selected backend.

All backends share this signature, and one test compares each with `reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.config.cells import CELL_TRAITS
from recurra.errors import ConfigError
from recurra.kernels import library as kernels
from recurra.recurrence.backends import bptt, linear_scan, native, reference, time_batched, torch_nn
from recurra.recurrence.cells import (
    Cell,
    LayerParameters,
    LinearCell,
    State,
    check_shapes,
    find_cell,
)
from recurra.recurrence.dropout import NO_DROPOUT, Dropout, Rows, Zoneout, drop, drop_weights

_RUNNERS: dict[str, Callable[..., tuple[Tensor, State]]] = {
    "reference": reference.run_layer,
    "bptt": bptt.run_layer,
    "library": torch_nn.run_layer,
    "native": native.run_layer,
}


BACKENDS = tuple(_RUNNERS)
"""Names of the backends that exist, `auto` aside."""


def run(
    cell: str,
    inputs: Tensor,
    state: State | None,
    parameters: LayerParameters,
    backend: str = "auto",
    *,
    precision: str = "fp32",
    recurrent_gradient_scale: float = 1.0,
    zoneout: Zoneout | None = None,
) -> tuple[Tensor, State]:
    """One layer through time.

    Args:
        cell: name of the cell, see `config/cells.py`.
        inputs: (T, B, I) numbers or (T, B) token ids (int64), T >= 1.
        state: the state before the first step, each tensor (B, H); None is zero.
        parameters: the layer's, as in torch.nn.
        backend: `auto`, or one of `BACKENDS`.
        precision: fp32 leaves the products in the parameters' dtype; bf16 rounds their operands.
        recurrent_gradient_scale: multiplies every gradient that passes from one step to the step
            before; randomised truncation needs it to stay unbiased.
        zoneout: of the state, where a cell's output is its state; by the reference backend only.

    Returns:
        The outputs (T, B, H) and the state after the last step.

    Raises:
        ConfigError: an unknown cell or backend, or one that cannot do what is asked.
    """
    kind = find_cell(cell)
    if zoneout is not None:
        if not kind.traits.reads_state or backend not in ("auto", "reference"):
            raise ConfigError(f"there is no zoneout of {cell} by the {backend} backend")
        backend = "reference"
    if backend == "auto":
        backend = choose_backend(
            cell,
            inputs.device,
            recurrent_gradient_scale,
            steps=inputs.shape[0],
            compiles=not native.why_not(inputs, state, parameters),
        )
    require_cell(backend, kind)
    check_shapes(kind, inputs, parameters)
    zero = zero_state(cell, inputs.shape[1], parameters)
    state = zero if state is None else state
    expected, found = ([tuple(s.shape) for s in parts] for parts in (zero, state))
    if found != expected:
        raise ConfigError(f"the state of {cell} has shapes {found}, and should have {expected}")
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if precision == "bf16" else parameters.weight_ih.dtype,
        "recurrent_gradient_scale": recurrent_gradient_scale,
    }
    if zoneout is not None:
        options["zoneout"] = zoneout
    if isinstance(kind, LinearCell) and backend != "reference":
        return time_batched.run_layer(kind, inputs, state, parameters, backend, **options)
    return _RUNNERS[backend](kind, inputs, state, parameters, **options)


def backends_of(cell: Cell) -> tuple[str, ...]:
    """Return the names of the backends that can compute a cell."""
    if isinstance(cell, LinearCell):
        return linear_scan.BACKENDS
    traits, has_no_state = CELL_TRAITS[cell.name], cell.num_states == 0
    able = {
        "reference": True,
        "bptt": has_no_state or traits.time_loop is not None,
        "library": has_no_state or traits.torch_function is not None,
        "native": has_no_state or traits.kernel is not None,
    }
    return tuple(name for name in BACKENDS if able[name])


def require_cell(backend: str, cell: Cell) -> None:
    """See to it that there is such a backend, and that it can compute the cell.

    Raises:
        ConfigError: it cannot.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
    able = backends_of(cell)
    if backend not in able:
        raise ConfigError(f"the {backend} backend has no {cell.name}; take auto, {', '.join(able)}")


def require_backend(backend: str, cell: str, device: torch.device) -> None:
    """See to it that a backend can compute a cell on a device, before anything depends on it.

    Raises:
        ConfigError, KernelError: it cannot.
    """
    if backend != "auto":
        require_cell(backend, find_cell(cell))
    if backend == "native":
        if device.type != "cpu":
            raise ConfigError(f"the native backend computes on a CPU, not on {device.type}")
        kernels.load()


def choose_backend(
    cell: str,
    device: torch.device,
    recurrent_gradient_scale: float = 1.0,
    steps: int | None = None,
    compiles: bool = True,
) -> str:
    """What `auto` takes: the fastest that can do it, by the figures of docs/results/book.md.

    On a CPU the compiled kernels are ahead, where they can be built. Without them the hand-written
    pass is ahead of torch.nn's, except for the LSTM, which oneDNN has a fused kernel for. Elsewhere
    launching one kernel per operation costs more than the arithmetic, and torch's fused kernels
    win. A single step, as in generation, has no loop to make faster: on a CPU the plain equations
    are ahead for RNN and LSTM, and within a tenth of torch's for the GRU.

    `compiles` states whether the compiled kernels support the tensors and the layer.
    """
    able = backends_of(find_cell(cell))
    if (device.type == "cpu" and steps == 1) or len(able) == 1:
        return "reference"
    has_kernel = "native" in able and find_cell(cell).num_states > 0
    if device.type == "cpu" and compiles and has_kernel and kernels.is_available():
        return "native"
    if "library" not in able or recurrent_gradient_scale != 1.0:
        return "bptt" if "bptt" in able else "reference"
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    fused = device.type != "cpu" or (CELL_TRAITS[cell].onednn and has_onednn)
    return "library" if fused else "bptt"


def zero_state(cell: str, batch_size: int, parameters: LayerParameters) -> State:
    """The state before anything was read: zeros, each (B, H) (h of a projected LSTM: (B, P))."""
    kind, weight = find_cell(cell), parameters.weight_ih
    units = weight.shape[0] // kind.num_gates
    outputs = units if parameters.weight_hr is None else len(parameters.weight_hr)
    return tuple(weight.new_zeros(batch_size, n) for n in (outputs, units)[: kind.num_states])


def run_stack(
    cell: str,
    inputs: Tensor,
    state: State | None,
    layers: Sequence[LayerParameters],
    backend: str = "auto",
    *,
    dropout: Dropout = NO_DROPOUT,
    rows: Rows | None = None,
    **options: Any,
) -> tuple[Tensor, State]:
    """Run stacked layers, with dropout of weights and outputs.

    Args:
        cell, inputs, backend, options: as in `run`.
        state: each tensor (L, B, H), or None.
        layers: the parameters of each layer, the lowest first.
        dropout: none when not training.
        rows: which rows of a larger batch these inputs are, where several processes share it.

    Returns:
        The top layer's outputs (T, B, H) and the state, each tensor (L, B, H).
    """
    if state is not None and any(len(s) != len(layers) for s in state):
        found = [len(s) for s in state]
        raise ConfigError(f"the state has {found} layers, and the model {len(layers)}")
    if dropout.weight > 0.0:
        layers = drop_weights(layers, dropout.weight)
    finals = []
    for index, parameters in enumerate(layers):
        initial = None if state is None else tuple(s[index] for s in state)
        inputs, final = run(cell, inputs, initial, parameters, backend, **options)
        finals.append(final)
        probability = dropout.output if index == len(layers) - 1 else dropout.between
        if probability > 0.0:
            inputs = drop(inputs, probability, dropout, rows)
    return inputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
