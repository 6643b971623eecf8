"""Names of the book for functions of torch, such as `d2l.randn`, and two checks of shapes.

The book's sources use these names so that a section fits several libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

_TORCH: dict[str, Any] = {
    "ones_like": torch.ones_like,
    "ones": torch.ones,
    "zeros_like": torch.zeros_like,
    "zeros": torch.zeros,
    "tensor": torch.tensor,
    "arange": torch.arange,
    "meshgrid": torch.meshgrid,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "linspace": torch.linspace,
    "exp": torch.exp,
    "log": torch.log,
    "normal": torch.normal,
    "rand": torch.rand,
    "randn": torch.randn,
    "matmul": torch.matmul,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "concat": torch.cat,
    "stack": torch.stack,
    "abs": torch.abs,
    "eye": torch.eye,
    "sigmoid": torch.sigmoid,
    "batch_matmul": torch.bmm,
    "nn_Module": nn.Module,
}

_METHODS = {
    "argmax": "argmax",
    "astype": "type",
    "expand_dims": "unsqueeze",
    "reduce_mean": "mean",
    "reduce_sum": "sum",
    "repeat": "repeat",
    "reshape": "reshape",
    "size": "numel",
    "swapaxes": "swapaxes",
    "to": "to",
    "transpose": "t",
}


def numpy(x: Tensor) -> Any:
    """Return a tensor as an array, without its gradient."""
    return x.detach().cpu().numpy()


def _method(name: str) -> Callable[..., Any]:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    call.__name__ = name
    call.__doc__ = f"Return x.{name}(*args, **kwargs)."
    return call


ALIASES: dict[str, Any] = {
    **_TORCH,
    **{name: _method(method) for name, method in _METHODS.items()},
    "numpy": numpy,
}
"""Functions of torch, and functions that call a method of a tensor, by their name in the book."""


def check_len(a: Sized, n: int) -> None:
    """Raise an AssertionError if the length of `a` is not `n` (section 9.5).

    Examples:
        >>> from recurra import d2l
        >>> d2l.check_len([1, 2], 2)
        >>> d2l.check_len([1, 2], 3)
        Traceback (most recent call last):
        AssertionError: the length is 2, but should be 3
    """
    if len(a) != n:
        raise AssertionError(f"the length is {len(a)}, but should be {n}")


def check_shape(a: Tensor, shape: Sequence[int]) -> None:
    """Raise an AssertionError if the shape of `a` is not `shape` (section 9.5).

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> d2l.check_shape(torch.zeros(2, 3), (2, 3))
        >>> d2l.check_shape(torch.zeros(2, 3), (3, 2))
        Traceback (most recent call last):
        AssertionError: the shape is (2, 3), but should be (3, 2)
    """
    if tuple(a.shape) != tuple(shape):
        raise AssertionError(f"the shape is {tuple(a.shape)}, but should be {tuple(shape)}")
