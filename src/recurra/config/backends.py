"""Tables of the backends and the precisions, for validation and for the recurrent layers."""

from __future__ import annotations

from typing import NamedTuple

_PACKAGE = "recurra.recurrence.backends"

BACKEND_MODULES: dict[str, str] = {
    "reference": f"{_PACKAGE}.reference",
    "bptt": f"{_PACKAGE}.bptt",
    "library": f"{_PACKAGE}.torch_nn",
    "native": f"{_PACKAGE}.native",
}
"""The module of each backend, by its name in `ModelConfig.backend`.

See `recurrence.backends.Backend` for the interface.
"""


class PrecisionTraits(NamedTuple):
    """The properties of a precision, see `recurrence.precision.Precision`.

    Attributes:
        operand_dtype: name of the torch dtype that the operands of matrix products are rounded to;
            None leaves them unchanged.
        allows_tf32: whether a GPU may round the operands of fp32 products to TF32.
        loss_scale: the initial factor of the loss in training; None without loss scaling.
    """

    operand_dtype: str | None = None
    allows_tf32: bool = False
    loss_scale: float | None = None


PRECISION_TRAITS: dict[str, PrecisionTraits] = {
    "fp32": PrecisionTraits(),
    "tf32": PrecisionTraits(allows_tf32=True),
    "bf16": PrecisionTraits("bfloat16"),
    # The smallest positive number of fp16 is 6e-8; smaller gradients would be rounded to 0.
    "fp16": PrecisionTraits("float16", loss_scale=2.0**16),
}
"""Every precision by its name in `ModelConfig.precision`."""
