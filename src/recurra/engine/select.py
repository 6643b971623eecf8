"""Choose an engine: the only place where device, backend, precision and model features meet.

The first engine that supports the model, the training and the processes is taken. The reason why
the preferred one was not is logged once at level INFO, every other reason at level DEBUG. Training,
the recipe's trials, the time estimate, dynamic evaluation and the benchmark choose here, so that
what is timed is what trains.
"""

from __future__ import annotations

import logging

from recurra.config import TrainingConfig
from recurra.engine.autograd import AutogradEngine, AutogradGradients
from recurra.engine.compiled import CompiledEngine
from recurra.engine.compiled_decoder import CompiledDecoder
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.engine.data_parallel import DataParallelEngine
from recurra.engine.decoder import Decoder, PlainDecoder
from recurra.engine.engine import Engine
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.distributed import SINGLE_PROCESS, Processes

ENGINES: tuple[type[Engine], ...] = (CompiledEngine, DataParallelEngine, AutogradEngine)
"""All engines, the preferred ones first."""

Gradients = AutogradGradients | CompiledGradients

_logger = logging.getLogger(__name__)
_logged: set[str] = set()
_BY_AUTOGRAD = "gradients are computed by autograd: "


def select_engine(
    model: RecurrentLM, config: TrainingConfig, processes: Processes = SINGLE_PROCESS
) -> Engine:
    """Return the preferred engine that supports the training.

    Args:
        model: the model, already on its device.
        config: optimizer, clipping and weight averaging.
        processes: the processes that share each batch.
    """
    reasons: list[str] = []
    for engine in ENGINES:
        reason = engine.unsupported(model, config, processes)
        if reason is None:
            if reasons:
                # Of the preferred engine; the others were not expected to be used.
                _log_once(_BY_AUTOGRAD + reasons[0])
            return engine(model, config, processes)
        _logger.debug("%s is not used: %s", engine.__name__, reason)
        reasons.append(reason)
    raise ConfigError(f"no engine supports this training: {'; '.join(reasons)}")


def select_gradients(model: RecurrentLM, processes: Processes = SINGLE_PROCESS) -> Gradients:
    """Return what computes loss and gradients where no optimizer is involved.

    It is what `select_engine` uses; with several processes it computes the part of one of them.
    """
    reason = CompiledGradients.unsupported(model, processes)
    if reason is None:
        return CompiledGradients(model)
    _log_once(_BY_AUTOGRAD + reason)
    return AutogradGradients(model)


def select_decoder(model: RecurrentLM, num_samples: int = 1) -> Decoder:
    """Return the preferred decoder that supports the model.

    Args:
        model: the model, on its device.
        num_samples: samples that are generated side by side.
    """
    reason = CompiledDecoder.unsupported(model)
    if reason is None:
        return CompiledDecoder(model, num_samples)
    _logger.debug("tokens are generated one by one: %s", reason)
    return PlainDecoder(model, num_samples)


def _log_once(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        _logger.info(message)
