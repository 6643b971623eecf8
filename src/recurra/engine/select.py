"""Choose an engine for the model, the training configuration and the processes.

The first engine that supports them is chosen. The reason for not choosing the preferred engine is
logged once at level INFO, all reasons at level DEBUG. Training, the recipe's measurements, the time
estimate, dynamic evaluation and the benchmark all choose here, so that training runs the code that
was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast
from weakref import WeakKeyDictionary, proxy

from recurra.config import TrainingConfig
from recurra.engine.autograd import AutogradEngine, AutogradGradients
from recurra.engine.compiled import CompiledEngine
from recurra.engine.compiled_decoder import CompiledDecoder
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.engine.cuda_graph import CudaGraphEngine, CudaRecorder
from recurra.engine.decoder import Decoder, PlainDecoder
from recurra.engine.engine import Engine
from recurra.engine.graph_decoder import GraphDecoder
from recurra.engine.graph_recorder import GraphRecorder
from recurra.engine.reader import GraphReader, PlainReader, Reader
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.distributed import SINGLE_PROCESS, Processes, started_rank

ENGINES: tuple[type[Engine], ...] = (CompiledEngine, CudaGraphEngine, AutogradEngine)
"""All engines, the preferred ones first."""

Gradients = AutogradGradients | CompiledGradients

_logger = logging.getLogger(__name__)
_logged: set[str] = set()
_readers: WeakKeyDictionary[RecurrentLM, tuple[tuple[int, ...], GraphReader]] = WeakKeyDictionary()
_BY_AUTOGRAD = "gradients are computed by autograd: "
_WITHOUT_GRAPH = "steps are executed without a CUDA graph: "


def select_engine(
    model: RecurrentLM, config: TrainingConfig, processes: Processes = SINGLE_PROCESS
) -> Engine:
    """Return the first of `ENGINES` that supports the training.

    Args:
        model: the model, already on its device.
        config: optimizer, clipping and weight averaging.
        processes: the processes that share each batch.

    Raises:
        ConfigError: no engine supports the training.
    """
    reasons: dict[type[Engine], str] = {}
    for engine in ENGINES:
        reason = engine.unsupported(model, config, processes)
        if reason is None:
            _log_reasons(model, reasons)
            return engine(model, config, processes)
        _logger.debug("%s is not used: %s", engine.__name__, reason)
        reasons[engine] = reason
    raise ConfigError(f"no engine supports this training: {'; '.join(reasons.values())}")


def select_gradients(model: RecurrentLM) -> Gradients:
    """Return the preferred gradient computation that supports the model, without an optimizer.

    Args:
        model: the model, already on its device.
    """
    reason = CompiledGradients.unsupported(model)
    if reason is None:
        return CompiledGradients(model)
    _log_once(_BY_AUTOGRAD + reason)
    return AutogradGradients(model)


def select_decoder(model: RecurrentLM, num_samples: int = 1) -> Decoder:
    """Return the preferred decoder that supports the model.

    Args:
        model: the model, already on its device.
        num_samples: number of samples that are generated in parallel.
    """
    reason = CompiledDecoder.unsupported(model)
    if reason is None:
        return CompiledDecoder(model, num_samples)
    recorder = _new_recorder(model)
    if recorder is not None and GraphDecoder.unsupported(model) is None:
        return GraphDecoder(model, num_samples, recorder)
    _logger.debug("tokens are generated with one call of the model each: %s", reason)
    return PlainDecoder(model, num_samples)


def select_reader(model: RecurrentLM) -> Reader:
    """Return the preferred reader for the model. A reader with graphs is kept as long as the model.

    Args:
        model: the model, already on its device.
    """
    # A graph reads the weights at the addresses that they had when it was recorded.
    addresses = tuple(parameter.data_ptr() for parameter in model.parameters())
    known = _readers.get(model)
    if known is None or known[0] != addresses:
        recorder = _new_recorder(model)
        if recorder is None:
            return PlainReader(model)
        # With a reference to the model, the reader would keep it alive.
        reader = GraphReader(cast(RecurrentLM, proxy(model)), recorder)
        known = _readers[model] = addresses, reader
    return known[1]


def _new_recorder(model: RecurrentLM) -> GraphRecorder | None:
    """Return a recorder of graphs for the device of a model, or None if it has no graphs."""
    return CudaRecorder(model.device) if model.device.type == "cuda" else None


def _log_reasons(model: RecurrentLM, reasons: Mapping[type[Engine], str]) -> None:
    """Log why the preferred engine of the device was not chosen."""
    is_cuda = model.device.type == "cuda"
    preferred: type[Engine] = CompiledEngine
    beginning = _BY_AUTOGRAD
    if is_cuda:
        preferred, beginning = CudaGraphEngine, _WITHOUT_GRAPH
    if preferred in reasons:
        _log_once(beginning + reasons[preferred])


def _log_once(message: str) -> None:
    # The other processes of torchrun decide the same.
    if message not in _logged and started_rank() == 0:
        _logged.add(message)
        _logger.info(message)
