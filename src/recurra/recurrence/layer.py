"""Run a recurrent layer, or a stack of layers, with the selected backend.

Every backend implements `Backend.run_layer`; one test compares each of them with `reference`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.kernels import library as kernels
from recurra.recurrence.backends import (
    Requirements,
    find_backend,
    is_observed,
    overlapping_backends,
    require_supported,
    requirements_of,
    time_batched,
)
from recurra.recurrence.cells import (
    Cell,
    LayerParameters,
    State,
    check_shapes,
    find_cell,
)
from recurra.recurrence.dropout import NO_DROPOUT, Dropout, Rows, Zoneout, drop, drop_weights
from recurra.recurrence.precision import Precision, find_precision


def run(
    cell: str,
    inputs: Tensor,
    state: State | None,
    parameters: LayerParameters,
    backend: str = "auto",
    *,
    precision: str | Precision = "fp32",
    recurrent_gradient_scale: float = 1.0,
    zoneout: Zoneout | None = None,
) -> tuple[Tensor, State]:
    """Run one layer through time.

    Args:
        cell: name of the cell, see `cells.CELLS`.
        inputs: (T, B, I) numbers or (T, B) token ids (int64), T >= 1.
        state: the state before the first step, each tensor (B, H); None is zero.
        parameters: the parameters of the layer, as in torch.nn.
        backend: `auto`, or one of `config.backends.BACKEND_MODULES`.
        precision: the precision of the products, or its name in `precision.PRECISIONS`.
        recurrent_gradient_scale: multiplies every gradient that passes from one step to the step
            before; randomized truncation needs it to stay unbiased.
        zoneout: zoneout of the state, for cells whose output is their state.

    Returns:
        The outputs (T, B, H) and the state after the last step.

    Raises:
        ConfigError: the cell or the backend is unknown, or the backend does not support the layer.
    """
    kind = find_cell(cell)
    found_precision = find_precision(precision)
    dtype = found_precision.product_dtype(parameters.weight_ih.dtype)
    # The reference supports every layer without zoneout. Collecting its requirements would take
    # 4 us, 5 % of a step in generation.
    if backend != "reference" or zoneout is not None:
        needs = requirements_of(
            kind,
            inputs,
            state or (),
            parameters,
            recurrent_gradient_scale=recurrent_gradient_scale,
            has_zoneout=zoneout is not None,
            product_dtype=dtype,
        )
        backend = _resolve(backend, needs, inputs.shape[0])
    check_shapes(kind, inputs, parameters)
    if state is None:
        state = zero_state(cell, inputs.shape[1], parameters)
    else:
        _check_state(kind, state, _state_shapes(kind, inputs.shape[1], parameters))
    options: dict[str, Any] = {
        "dtype": dtype,
        "recurrent_gradient_scale": recurrent_gradient_scale,
    }
    if zoneout is not None:
        options["zoneout"] = zoneout
    with found_precision.products(inputs.device):
        if not kind.reads_state and backend != "reference":
            return time_batched.run_layer(kind, inputs, state, parameters, backend, **options)
        return find_backend(backend).run_layer(kind, inputs, state, parameters, **options)


def _resolve(backend: str, needs: Requirements, steps: int) -> str:
    """Return the name of the backend for a call, with `auto` resolved.

    Raises:
        ConfigError: the backend is unknown, or does not support the layer.
    """
    if backend == "auto":
        unseen = ("native", "bptt") if is_observed() else ()
        backend = choose_backend(needs, steps=steps, exclude=unseen)
    require_supported(backend, needs)
    return backend


def _check_state(cell: Cell, state: State, expected: list[tuple[int, ...]]) -> None:
    found = [tuple(part.shape) for part in state]
    if found != expected:
        raise ConfigError(
            f"the state of {cell.name} has shapes {found}, but should have {expected}"
        )


def choose_backend(
    needs: Requirements, steps: int | None = None, exclude: Collection[str] = ()
) -> str:
    """Return the backend that `auto` selects: the fastest one, see docs/results/cpu.md.

    On a CPU the compiled kernels are the fastest, if they can be built. Without them the
    hand-derived pass is faster than torch.nn, except for the LSTM, for which oneDNN has a fused
    kernel. On other devices launching one kernel per operation costs more than the arithmetic, and
    torch's fused kernels are the fastest. A single step, as in generation, has no time loop: on a
    CPU the plain equations are the fastest for RNN and LSTM, and within a tenth of torch's kernel
    for the GRU.

    Args:
        needs: the layer.
        steps: number of time steps, or None for many.
        exclude: backends not to select.
    """

    def supports(name: str) -> bool:
        return name not in exclude and find_backend(name).unsupported(needs) is None

    if needs.is_transformed:
        return "reference"
    on_cpu = needs.device.type == "cpu"
    if on_cpu and steps == 1:
        return "reference"
    if needs.cell.num_states and supports("native") and kernels.is_available():
        return "native"
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    kernel = needs.cell.torch_kernel
    # oneDNN's fused kernel for the LSTM has no backward pass in fp16.
    is_fused_on_cpu = (
        kernel is not None
        and kernel.is_fused_on_cpu
        and has_onednn
        and needs.product_dtype != torch.float16
    )
    preferred = ("library", "bptt") if is_fused_on_cpu or not on_cpu else ("bptt", "library")
    return next((name for name in preferred if supports(name)), "reference")


def zero_state(cell: str, batch_size: int, parameters: LayerParameters) -> State:
    """Return the state before the first step: zeros, each (B, H); (B, P) for a projected h."""
    shapes = _state_shapes(find_cell(cell), batch_size, parameters)
    return tuple(parameters.weight_ih.new_zeros(shape) for shape in shapes)


def _state_shapes(
    cell: Cell, batch_size: int, parameters: LayerParameters
) -> list[tuple[int, ...]]:
    units = parameters.weight_ih.shape[0] // cell.num_gates
    outputs = units if parameters.weight_hr is None else len(parameters.weight_hr)
    return [(batch_size, size) for size in (outputs, units)[: cell.num_states]]


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
        dropout: the dropout probabilities.
        rows: the rows of a larger batch that these inputs are, if several processes share it.

    Returns:
        The top layer's outputs (T, B, H) and the state, each tensor (L, B, H).
    """
    if state is not None and any(len(s) != len(layers) for s in state):
        found = [len(s) for s in state]
        raise ConfigError(f"the state has {found} layers, but the model has {len(layers)}")
    if dropout.weight > 0.0:
        layers = drop_weights(layers, dropout.weight)
    whole = None
    if dropout.between == 0.0 and len(layers) > 1:
        whole = _run_in_one_call(cell, inputs, state, layers, backend, **options)
    if whole is None:
        whole = _run_one_by_one(
            cell, inputs, state, layers, backend, dropout=dropout, rows=rows, **options
        )
    outputs, final = whole
    if dropout.output > 0.0:
        outputs = drop(outputs, dropout.output, dropout, rows)
    return outputs, final


def _run_one_by_one(
    cell: str,
    inputs: Tensor,
    state: State | None,
    layers: Sequence[LayerParameters],
    backend: str,
    *,
    dropout: Dropout,
    rows: Rows | None,
    **options: Any,
) -> tuple[Tensor, State]:
    """Run stacked layers, with dropout between them."""
    finals: list[State] = []
    for index, parameters in enumerate(layers):
        if index > 0 and dropout.between > 0.0:
            inputs = drop(inputs, dropout.between, dropout, rows)
        initial = None if state is None else tuple(s[index] for s in state)
        inputs, final = run(cell, inputs, initial, parameters, backend, **options)
        finals.append(final)
    return inputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _run_in_one_call(
    cell: str,
    inputs: Tensor,
    state: State | None,
    layers: Sequence[LayerParameters],
    backend: str,
    *,
    precision: str | Precision = "fp32",
    recurrent_gradient_scale: float = 1.0,
    zoneout: Zoneout | None = None,
) -> tuple[Tensor, State] | None:
    """Run stacked layers in one call of the backend; return None unless that is faster.

    The arguments and the result are those of `run_stack`, without dropout.
    """
    overlapping = overlapping_backends(layers)
    if not overlapping or zoneout is not None:
        return None
    kind, bottom, found_precision = find_cell(cell), layers[0], find_precision(precision)
    dtype = found_precision.product_dtype(bottom.weight_ih.dtype)
    needs = requirements_of(
        kind,
        inputs,
        state or (),
        bottom,
        recurrent_gradient_scale=recurrent_gradient_scale,
        product_dtype=dtype,
    )
    name = _resolve(backend, needs, inputs.shape[0])
    if name not in overlapping:
        return None
    check_shapes(kind, inputs, bottom)
    expected = _state_shapes(kind, inputs.shape[1], bottom)
    if state is None:
        state = tuple(
            bottom.weight_ih.new_zeros(len(layers), batch, size) for batch, size in expected
        )
    _check_state(kind, state, [(len(layers), batch, size) for batch, size in expected])
    with found_precision.products(inputs.device):
        return overlapping[name].run_layers(
            kind,
            inputs,
            state,
            layers,
            dtype=dtype,
            recurrent_gradient_scale=recurrent_gradient_scale,
        )
