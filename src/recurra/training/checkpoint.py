"""Weights and training states on disk: safetensors with a little JSON in the header, no pickle.

A checkpoint is one file, so that it is there whole or not at all: the weights under `model.`, the
optimiser's tensors under `optimizer.<index>.`, the carried hidden state under `state.`, and torch's
random generator under `random.`; counters and the rest of the trainer's memory are the JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import recurra
from recurra.errors import RunError
from recurra.files import replaced

Tensors = dict[str, Tensor]


def save_weights(file: Path, model: nn.Module, record: dict[str, Any]) -> None:
    """Write a model's weights; `record` goes into the header as JSON."""
    _write(file, dict(model.state_dict()), record)


def load_weights(file: Path, model: nn.Module) -> dict[str, Any]:
    """Read weights into a model and return the record that was saved with them.

    Raises:
        RunError: the file is missing or damaged, or its names or shapes are not the model's.
    """
    tensors, record = _read(file)
    _load_into(model, tensors, file)
    return record


def save_checkpoint(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: tuple[Tensor, ...] | None,
    record: dict[str, Any],
) -> None:
    """Write everything that the training needs to go on as if never interrupted."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    for index, tensor in enumerate(state or ()):
        tensors[f"state.{index}"] = tensor
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    _write(file, tensors, record)


def load_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[tuple[Tensor, ...] | None, dict[str, Any]]:
    """Restore model, optimiser and torch's random generator; return hidden state and record.

    Raises:
        RunError: the file is missing or damaged, or does not fit the model.
    """
    tensors, record = _read(file)
    _load_into(model, _below("model.", tensors), file)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    random = _below("random.", tensors)
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    device = next(model.parameters()).device
    state = _below("state.", tensors)
    carried = tuple(state[str(index)].to(device) for index in range(len(state)))
    return carried or None, record


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _load_into(model: nn.Module, tensors: Tensors, file: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise RunError(
                f"{file} does not fit its config.json: {name} has shape {found.get(name)},"
                f" and should have {expected.get(name)}"
            )
    model.load_state_dict(tensors)


def _write(file: Path, tensors: Tensors, record: dict[str, Any]) -> None:
    metadata = {"format": "pt", "recurra": recurra.__version__, "record": json.dumps(record)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced(file) as temporary:
        # Not safetensors' own save_file: that gives the file mode 0600 whatever the umask.
        temporary.write_bytes(_in_fixed_order(save(plain, metadata=metadata)))


def _in_fixed_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted by name.

    safetensors writes them in an order that changes from process to process, and the same run
    shall give the same bytes.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The format pads its header with spaces.
    return data[:8] + sorted_header.ljust(size) + data[8 + size :]


def _read(file: Path) -> tuple[Tensors, dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            record = json.loads((stream.metadata() or {}).get("record", "{}"))
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing") from error
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    return tensors, record
