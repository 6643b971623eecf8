"""Choose between the compiled kernels and autograd, and log the reason.

Training, the time estimate, the recipe's trials and dynamic evaluation all ask here, so that what
is timed is what trains.
"""

from __future__ import annotations

import logging

from recurra.engine.autograd import AutogradGradients
from recurra.engine.compiled import CompiledGradients
from recurra.model.recurrent_lm import RecurrentLM

Gradients = AutogradGradients | CompiledGradients

_logger = logging.getLogger(__name__)


def select_gradients(model: RecurrentLM, num_processes: int = 1) -> Gradients:
    """Return the fastest implementation that supports the model.

    Args:
        model: the model, already on its device.
        num_processes: processes that share each batch. The result computes the part of one
            process; `AutogradGradients(model, processes)` also averages over all of them.

    The reason for rejecting the compiled kernels is logged at level INFO.
    """
    reason = CompiledGradients.unsupported(model, num_processes)
    if reason is None:
        return CompiledGradients(model)
    _logger.info("gradients by autograd: %s", reason)
    return AutogradGradients(model)
