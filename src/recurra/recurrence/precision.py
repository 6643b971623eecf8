"""Precision: the number format of the operands of matrix products.

Sums, states, gradients and weights stay in the dtype of the parameters. On a CPU, operands in bf16
or fp16 are rounded and then multiplied in fp32.

In the precision fp32, no operand is rounded. By default, torch lets cuDNN round the operands of
recurrent layers to TF32, which keeps 10 of the 23 bits of an fp32 fraction, and a user may allow
the same for cuBLAS. These settings are global. `Precision.products` changes them around the
products of this package and restores them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import RLock

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.functional import linear

from recurra.config.backends import PRECISION_TRAITS, PrecisionTraits
from recurra.errors import ConfigError

_logger = logging.getLogger(__name__)
_logged: set[str] = set()


@dataclass(frozen=True)
class Precision:
    """A number format for the operands of matrix products.

    Attributes:
        name: the name in `ModelConfig.precision`.
        operand_dtype: the dtype that operands are rounded to; None leaves them unchanged.
        allows_tf32: whether a GPU may round the operands of fp32 products to TF32.
        loss_scale: the initial factor of the loss in training, which keeps small gradients
            representable; None without loss scaling.
    """

    name: str
    operand_dtype: torch.dtype | None
    allows_tf32: bool = False
    loss_scale: float | None = None

    @classmethod
    def from_traits(cls, name: str, traits: PrecisionTraits) -> Precision:
        """Return the precision of a row of `PRECISION_TRAITS`."""
        dtype = None if traits.operand_dtype is None else getattr(torch, traits.operand_dtype)
        return cls(name, dtype, traits.allows_tf32, traits.loss_scale)

    def product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the operands of products of tensors of a dtype."""
        return dtype if self.operand_dtype is None else self.operand_dtype

    def products(self, device: torch.device | None = None) -> AbstractContextManager[None]:
        """Return a context in which fp32 products on a GPU have this precision.

        In every precision but tf32, products of fp32 operands are computed in fp32. The settings
        are restored at the end, whichever of torch's interfaces they were changed with:
        `allow_tf32`, `set_float32_matmul_precision` or `fp32_precision`. They are global: they also
        apply to other threads, so that two threads that compute in different precisions at the same
        time can get each other's precision. A backward pass that autograd runs after the context
        has ended needs the context again.

        Args:
            device: the device of the products; None changes the settings in any case. On devices
                other than CUDA, and while torch.compile traces, the context does nothing.

        Examples:
            >>> import torch
            >>> from recurra.recurrence.precision import find_precision
            >>> with find_precision("fp32").products():
            ...     torch.backends.cudnn.rnn.fp32_precision
            'ieee'
        """
        if (device is not None and device.type != "cuda") or torch.compiler.is_compiling():
            return nullcontext()
        return _fp32_products("tf32" if self.allows_tf32 else "ieee")

    def describe_fallback(self, device: torch.device) -> str | None:
        """Return a note if this precision is fp32 on a device that has no TF32, else None."""
        if not self.allows_tf32 or _has_tf32(device):
            return None
        return f"{device.type} has no TF32: products are computed in fp32"

    def log_fallback(self, device: torch.device) -> None:
        """Log the note of `describe_fallback` once, at level INFO."""
        note = self.describe_fallback(device)
        if note is not None and note not in _logged:
            _logged.add(note)
            _logger.info(note)


PRECISIONS = {
    name: Precision.from_traits(name, traits) for name, traits in PRECISION_TRAITS.items()
}
"""Every precision of `config/backends.py` by its name."""
FP32 = PRECISIONS["fp32"]


def find_precision(precision: str | Precision) -> Precision:
    """Return the precision of this name; a `Precision` is returned unchanged.

    Raises:
        ConfigError: the name is unknown; the message lists the available names.
    """
    if isinstance(precision, Precision):
        return precision
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def autocast_precision(weight: Tensor) -> Precision:
    """Return the precision that autocast selects for the products of a weight."""
    device = weight.device.type
    if weight.dtype != torch.float32 or not torch.amp.is_autocast_available(device):
        return FP32
    if not torch.is_autocast_enabled(device):
        return FP32
    selected = torch.get_autocast_dtype(device)
    return next((p for p in PRECISIONS.values() if p.operand_dtype == selected), FP32)


def round_operand(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor rounded to the dtype of the operands.

    On a CPU the result has the dtype of the tensor, so that a product of rounded operands is
    computed in it, which loses nothing more. On other devices the result has the dtype `dtype`.
    """
    if dtype == tensor.dtype:
        return tensor
    rounded = tensor.to(dtype)
    return rounded.to(tensor.dtype) if tensor.device.type == "cpu" else rounded


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left right' in the dtype of `left`.

    Args:
        left: (..., k).
        right: (n, k).
        dtype: the dtype of the operands, see `round_operand`.

    Returns:
        (..., n).
    """
    if dtype == left.dtype:
        return linear(left, right)
    return linear(round_operand(left, dtype), round_operand(right, dtype)).to(left.dtype)


def matrix_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left right in the dtype of `left`: (m, k) times (k, n), with operands in `dtype`."""
    return torch.mm(round_operand(left, dtype), round_operand(right, dtype)).to(left.dtype)


def products_for_backward(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Return a function that returns contexts with torch's current settings for fp32 products.

    A forward pass calls it inside `Precision.products`, and its backward pass enters the context.

    Args:
        device: the device of the products. On devices other than CUDA, the contexts do nothing.
    """
    if device.type != "cuda":
        return nullcontext
    return partial(_fp32_products, _current())


def keep_products_in_backward(node: Node | None) -> None:
    """Make a backward node compute with torch's current settings for fp32 products.

    The settings are changed before the node and restored after it. If the node raises an exception,
    they are restored when the autograd graph is freed.

    Args:
        node: the `grad_fn` of the outputs of a kernel; None without gradients.
    """
    if node is not None:
        around = _AroundNode(partial(_fp32_products, _current()))
        node.register_prehook(around.enter)
        node.register_hook(around.leave)


class _AroundNode:
    """Hooks that run a backward node inside a context."""

    def __init__(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._context = context
        self._entered: list[AbstractContextManager[None]] = []

    def enter(self, _: tuple[Tensor | None, ...]) -> None:
        self._entered.append(self._context())
        self._entered[-1].__enter__()

    def leave(self, *_: tuple[Tensor | None, ...]) -> None:
        self._entered.pop().__exit__(None, None, None)

    def __del__(self) -> None:
        while self._entered:
            self.leave()


_Setting = tuple[str, str]
"""Backend and operation of a setting of torch, as in `torch.backends.cuda.matmul`."""
_GENERIC: _Setting = ("generic", "all")
_CUDA: _Setting = ("cuda", "all")
_MATMUL: _Setting = ("cuda", "matmul")
_RNN: _Setting = ("cuda", "rnn")
_SETTINGS = (_GENERIC, _CUDA, _MATMUL, _RNN)


@dataclass(eq=False)
class _Change:
    """A change of torch's settings, which ends with the last context that needs it.

    The settings have three levels: generic, CUDA, and the operation. One that the user has not set
    inherits the value of the level above. Reading it returns the inherited value, and writing this
    value back would end the inheritance, so that later changes of the level above would have no
    effect. The upper levels are therefore changed first. A setting that still differs afterwards is
    not inherited, and its own value is restored. The generic setting is changed only if the user
    has set it.

    Attributes:
        wanted: "ieee" or "tf32".
        before: the settings that were changed, with their former values.
        users: the number of contexts that need the change.
    """

    wanted: str
    before: list[tuple[_Setting, str]] = field(default_factory=list)
    users: int = 0

    def is_in_effect(self) -> bool:
        """Return whether cuBLAS and cuDNN both compute with the wanted setting."""
        return _read(_MATMUL) == _read(_RNN) == self.wanted

    def make(self) -> None:
        """Change the settings."""
        for setting in _SETTINGS:
            if self.is_in_effect():
                break
            value = _read(setting)
            if value != self.wanted and (setting != _GENERIC or value != "none"):
                self.before.append((setting, value))
                _write(setting, self.wanted)

    def end(self) -> None:
        """Restore the settings, or let the next change restore them if there is a later one."""
        index = _changes.index(self)
        _changes.remove(self)
        if index < len(_changes):
            # The contexts of another thread, which last longer, began later.
            later = _changes[index]
            values = dict(later.before) | dict(self.before)
            later.before = [(s, values[s]) for s in _SETTINGS if s in values]
            return
        for setting, value in reversed(self.before):
            _write(setting, value)


_changes: list[_Change] = []
_lock = RLock()  # The garbage collector may leave a context while this thread enters another one.


@contextmanager
def _fp32_products(wanted: str) -> Iterator[None]:
    """Compute fp32 products of cuBLAS and cuDNN in "ieee" or "tf32" inside the context."""
    with _lock:
        change = _changes[-1] if _changes else None
        if change is None or change.wanted != wanted or not change.is_in_effect():
            change = _Change(wanted)
            _changes.append(change)
            change.make()
        change.users += 1
    try:
        yield
    finally:
        with _lock:
            change.users -= 1
            if change.users == 0:
                change.end()


def _current() -> str:
    return "tf32" if _read(_RNN) == _read(_MATMUL) == "tf32" else "ieee"


# `torch.backends` has properties for the same settings, but those of the two upper levels cannot be
# assigned after `torch.backends.disable_global_flags`.
def _read(setting: _Setting) -> str:
    value: str = torch._C._get_fp32_precision_getter(*setting)
    return value


def _write(setting: _Setting, value: str) -> None:
    torch._C._set_fp32_precision_setter(*setting, value)


def _has_tf32(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
