"""Matrix products and row operations of the kernels, on tensors.

Operands of products are fp32, or rounded to bf16, which some machines store as pairs; sums and
results are fp32. Calls that depend on values are made through `do`, see `recorder.py`.
"""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from recurra.kernels import library, structures
from recurra.kernels.buffers import Workspace
from recurra.kernels.recorder import Do

SINGLE, _ROUNDED = 0, 1
_BFLOAT16 = torch.empty(0, dtype=torch.bfloat16)


def take_operand(workspace: Workspace, kind: int, name: str, *shape: int, like: Tensor) -> Tensor:
    """Return a buffer for operands of a matrix-product kernel; `like` is fp32."""
    halves = kind not in (SINGLE, _ROUNDED)
    return workspace.take(name, *shape, like=_BFLOAT16 if halves else like)


def as_operand(kind: int, matrix: Tensor, workspace: Workspace, do: Do) -> Tensor:
    """Return a matrix as operands of a matrix-product kernel: rounded or unchanged."""
    if kind == SINGLE:
        return matrix
    operand = take_operand(workspace, kind, "operand", *matrix.shape, like=matrix)
    do(operand.copy_, matrix)
    if kind == _ROUNDED:
        halves = workspace.take("halves", *matrix.shape, like=_BFLOAT16)
        do(halves.copy_, matrix)
        do(operand.copy_, halves)
    return operand


def check_ids(ids: Tensor, limit: int) -> None:
    """Check that all ids are valid, because the kernels do not check.

    Args:
        ids: int64, contiguous.

    Raises:
        IndexError: one of them is negative, or `limit` or more.
    """
    if not library.load().recurra_all_below(ids.numel(), ids.data_ptr(), limit):
        raise IndexError(f"a token id is not between 0 and {limit - 1}")


def transpose(matrix: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Write out (n, m) = matrix' of (m, n), plus bias (m,); all contiguous."""
    library.load().recurra_transpose(
        library.threads(),
        *matrix.shape,
        library.pointer(matrix),
        library.pointer(bias),
        library.pointer(out),
    )


def apply_mask(values: Tensor, mask: Tensor, out: Tensor) -> None:
    """Write out = values * mask, without the threads of torch, which disturb those of the kernels.

    Args:
        values, out: contiguous fp32 tensors of the same shape; they may be the same tensor.
        mask: contiguous fp32; it has the last dimensions of `values`, or dimensions of size 1
            before them.
    """
    assert values.numel() % mask.numel() == 0
    library.load().recurra_apply_mask(
        library.threads(),
        values.numel(),
        mask.numel(),
        library.pointer(values),
        library.pointer(mask),
        library.pointer(out),
    )


def add_rows(ids: Tensor, rows: Tensor, table: Tensor, *, clears: bool = False) -> None:
    """Add each row to a row of a table: table[ids[r]] += rows[r], in the order of the rows.

    Args:
        ids: N valid ids.
        rows: (N, W), fp32 or bf16, with any row stride.
        table: (V, W), contiguous.
        clears: set the table to zero before.
    """
    library.load().recurra_add_rows(
        library.threads(),
        *rows.shape,
        rows.stride(0),
        ids.data_ptr(),
        rows.data_ptr(),
        rows.dtype == torch.bfloat16,
        len(table) if clears else 0,
        library.pointer(table),
    )


def gradient_product(
    kind: int, left: Tensor, right: Tensor, out: Tensor, workspace: Workspace, do: Do
) -> None:
    """Write out = left' right: a weight gradient, summed over all rows.

    `left` has operands of this kind, `right` fp32 numbers; both may be columns of wider matrices.
    """
    threads, kernels = library.threads(), library.load()
    numbers = kernels.recurra_transposed_numbers(threads, len(left), right.shape[1])
    packed = workspace.take("packed product", numbers, like=right)
    product = structures.GradientProduct(
        kind=kind,
        threads=threads,
        rows=len(left),
        m=left.shape[1],
        n=right.shape[1],
        lda=left.stride(0),
        ldb=right.stride(0),
        ldc=out.stride(0),
    )
    product.point_strided(a=left, b=right, c=out, packed=packed)
    do(kernels.recurra_multiply_transposed, byref(product))


def dense_product(
    kind: int,
    left: Tensor,
    right: Tensor,
    out: Tensor,
    workspace: Workspace,
    do: Do,
    bias: Tensor | None = None,
) -> None:
    """Write out = left right + bias.

    `left` (N, K) has fp32 numbers or operands of this kind, `right` (K, M) is contiguous or the
    transpose of a contiguous tensor, `out` is contiguous.
    """
    threads, kernels = library.threads(), library.load()
    depth, width = right.shape
    row, column = (width, 1) if right.is_contiguous() else (1, depth)
    assert right.is_contiguous() or right.t().is_contiguous()
    packed = workspace.take(
        "packed dense", kernels.recurra_dense_numbers(threads, depth, width), like=out
    )
    dense = structures.DenseProduct(
        kind=kind,
        threads=threads,
        rows=len(left),
        depth=depth,
        n=width,
        lda=left.stride(0),
        is_operand=left.dtype != torch.float32,
        weight_row=row,
        weight_column=column,
    )
    dense.point_strided(a=left, weight=right)
    dense.point(bias=bias, out=out, packed=packed)
    do(kernels.recurra_multiply, byref(dense))
