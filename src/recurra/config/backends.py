"""Tables of the backends and the precisions, for validation and for the recurrent layers."""

from __future__ import annotations

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

OPERAND_DTYPES: dict[str, str | None] = {"fp32": None, "bf16": "bfloat16"}
"""The torch dtype of each precision, by its name in `ModelConfig.precision`.

The operands of matrix products are rounded to this dtype. None means that they are not rounded.
"""
