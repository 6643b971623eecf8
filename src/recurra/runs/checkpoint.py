"""The contents of a checkpoint: everything needed for an exact resume.

    state.safetensors    weights and their averages, the optimiser's, hidden state, random states
    training.json        counters and the best so far; settings, text and vocabulary
    session.json         what differs from run to run: the clock, the machine
    best.safetensors     the weights that model.safetensors held
    *.jsonl              metrics, samples and failures up to here

The first, the second and the best are the same bytes in every run of the same text, settings,
seed, thread count and machine. Knows the model and its optimiser, and not when to save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recurra.config import ModelConfig
from recurra.errors import ConfigError, RunError
from recurra.io.files import read_json, to_json
from recurra.io.tensors import Tensors, TensorSpec, read_tensor_file, to_bytes
from recurra.model.recurrent_lm import RecurrentLM, parameter_specs
from recurra.recurrence.cells import State, find_cell
from recurra.runs.train_state import Memory, Timing

STATE, TRAINING, SESSION, BEST = (
    "state.safetensors",
    "training.json",
    "session.json",
    "best.safetensors",
)


@dataclass
class Moment:
    """What the files of a checkpoint say, the tensors aside.

    Attributes:
        memory: see `train_state.Memory`.
        identity: see `compatibility.identity`.
        timing: see `memory.Timing`.
        environment: see `compatibility.environment`.
    """

    memory: Memory
    identity: dict[str, Any]
    timing: Timing
    environment: dict[str, Any]

    def to_files(self) -> dict[str, bytes]:
        """As the two JSON files of a checkpoint."""
        return {
            TRAINING: to_json({"memory": asdict(self.memory), "run": self.identity}),
            SESSION: to_json({"timing": asdict(self.timing), "machine": self.environment}),
        }

    @classmethod
    def read(cls, folder: Path) -> Moment:
        """Read the two JSON files of a checkpoint.

        Raises:
            RunError: one is missing, or is not what it should be.
        """
        training, session = read_json(folder / TRAINING), read_json(folder / SESSION)
        try:
            memory = Memory.from_dict(training.get("memory"))
            timing = Timing.from_dict(session.get("timing"))
        except ConfigError as error:
            raise RunError(f"{folder} is damaged: {error}") from error
        run, machine = training.get("run"), session.get("machine")
        if not isinstance(run, dict) or not isinstance(machine, dict):
            raise RunError(f"{folder} is damaged: it does not say which run it belongs to")
        return cls(memory, run, timing, machine)


def state_to_bytes(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Tensors,
    hidden: Sequence[Tensor],
) -> bytes:
    """The file of tensors.

    Args:
        averages: of the weights, by name; {} where none are kept.
        hidden: the carried state of all rows of the batch, each (L, B, H).
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averages.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    for index, tensor in enumerate(hidden):
        tensors[f"hidden.{index}"] = tensor
    return to_bytes(tensors | _random_states(), {})


def read_state(
    file: Path,
    model: RecurrentLM,
    optimizer: torch.optim.Optimizer,
    averages: Tensors,
    batch_size: int,
    *,
    begun: bool,
) -> State | None:
    """Restore weights, their averages, optimiser and torch's random generators.

    Args:
        averages: written in place.
        begun: whether an update was made; before the first there are neither averages nor a
            hidden state.

    Returns:
        The carried state of all rows of the batch, each (L, B, H); None before the first update.

    Raises:
        RunError: the file is missing, damaged, or not of this model.
    """
    expected = {f"model.{name}": spec for name, spec in parameter_specs(model.config).items()}
    expected |= {name: _spec(tensor) for name, tensor in _random_states().items()}
    expected |= {f"average.{name}": _spec(tensor) for name, tensor in averages.items()}
    # A state that was saved where there was a GPU has its generator too.
    expected.setdefault("random.cuda", TensorSpec(torch.uint8, (16,)))
    if begun:
        expected |= dict(_slot_specs(optimizer)) | _hidden_specs(model.config, batch_size)
    tensors, _ = read_tensor_file(file, expected, optional={"random.cuda"})
    _set_random_states(tensors, file)
    model.load_state_dict(_below("model.", tensors))
    for name, average in averages.items():
        average.copy_(tensors[f"average.{name}"])
    _load_optimizer(optimizer, _below("optimizer.", tensors))
    hidden = _below("hidden.", tensors)
    return tuple(hidden[str(i)].to(model.device) for i in range(len(hidden))) or None


def _random_states() -> Tensors:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(tensors: Tensors, file: Path) -> None:
    try:
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except RuntimeError as error:
        raise RunError(f"{file} is damaged: random.* is no state of a generator") from error


def _slot_specs(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, TensorSpec]]:
    """What torch's SGD, Adam and AdamW remember of each parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    names = ("momentum_buffer",) if is_sgd else ("exp_avg", "exp_avg_sq")
    if is_sgd and not optimizer.defaults["momentum"]:
        return
    for index, parameter in enumerate(parameters):
        for name in names:
            yield f"optimizer.{index}.{name}", _spec(parameter)
        if not is_sgd:
            yield f"optimizer.{index}.step", TensorSpec(torch.float32, ())


def _hidden_specs(config: ModelConfig, batch_size: int) -> dict[str, TensorSpec]:
    shape = (config.num_layers, batch_size, config.hidden_size)
    count = find_cell(config.cell).num_states
    return {f"hidden.{index}": TensorSpec(torch.float32, shape) for index in range(count)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
