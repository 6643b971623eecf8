"""Train and use recurrent language models.

    import recurra
    lm = recurra.train("book.txt", cell="lstm", hidden_size=256, minutes=3, out="runs/book")
    lm.generate("Once upon", max_new_tokens=200)

Importing the package is fast: torch is imported on the first use of a name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recurra.version import __version__

if TYPE_CHECKING:
    from recurra import config, d2l, errors, model, nn
    from recurra.api import LanguageModel, load, resume, train
    from recurra.engine.optimizers import register_optimizer
    from recurra.experiments import compare
    from recurra.recurrence.cells import Cell
    from recurra.recurrence.cells.registration import register_cell

_FUNCTIONS = {
    "Cell": "recurrence.cells",
    "LanguageModel": "api",
    "compare": "experiments",
    "load": "api",
    "register_cell": "recurrence.cells.registration",
    "register_optimizer": "engine.optimizers",
    "resume": "api",
    "train": "api",
}
_MODULES = ("config", "d2l", "errors", "model", "nn")

__all__ = [
    "Cell",
    "LanguageModel",
    "__version__",
    "compare",
    "config",
    "d2l",
    "errors",
    "load",
    "model",
    "nn",
    "register_cell",
    "register_optimizer",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Return a public name, imported on first use so that `recurra --help` does not import
    torch."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"recurra.{_FUNCTIONS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"recurra.{name}")
    raise AttributeError(f"module 'recurra' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
