"""Recognize an interactive session: a notebook, IPython or the prompt of Python."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def is_interactive() -> bool:
    """Return whether the code runs in a notebook, in IPython or at the prompt of Python.

    A script is not interactive, even if it was started from a terminal.
    """
    return hasattr(sys, "ps1") or _shell() is not None


def notebook_display() -> Any | None:
    """Return the module IPython.display in a Jupyter notebook, otherwise None."""
    return importlib.import_module("IPython.display") if hasattr(_shell(), "kernel") else None


def _shell() -> Any | None:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
