"""The tables of backends and precisions: one row each, read by configuration and recurrence."""

from __future__ import annotations

_PACKAGE = "recurra.recurrence.backends"

BACKEND_MODULES: dict[str, str] = {
    "reference": f"{_PACKAGE}.reference",
    "bptt": f"{_PACKAGE}.bptt",
    "library": f"{_PACKAGE}.torch_nn",
    "native": f"{_PACKAGE}.native",
}
"""The module of every backend by its name in `ModelConfig.backend`; see
`recurrence.backends.Backend`."""

OPERAND_DTYPES: dict[str, str | None] = {"fp32": None, "bf16": "bfloat16"}
"""Every precision by its name in `ModelConfig.precision`: the torch dtype that the operands of
matrix products are rounded to, or None if they are not rounded."""
