"""Safetensors files, written deterministically and validated before memory is allocated.

The contents of a file are untrusted. Its size, the length of its header and the header itself
are compared with what the reader expects, name by name, before a tensor is read; the library then
reads bytes of which nothing is left to doubt. Knows neither models nor training.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from recurra.errors import RunError
from recurra.io.files import opened_regular, parse_json
from recurra.version import __version__

Tensors = dict[str, Tensor]

MAX_HEADER_BYTES = 1 << 22
"""Of JSON; the header of a model of 256 layers is 20 times smaller."""
_LENGTH_BYTES = 8
_NAMES = {torch.float32: "F32", torch.uint8: "U8"}
_METADATA = "__metadata__"
_PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
"""How a zip file begins, which torch.save writes, and a pickle by itself."""


class TensorSpec(NamedTuple):
    """What a tensor must be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """How much of a file it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def to_bytes(tensors: Tensors, record: dict[str, Any]) -> bytes:
    """A file of these tensors, `record` in its header as JSON; the same bytes for the same values.

    safetensors writes its metadata in an order that changes from process to process, and the same
    run shall give the same file.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", "record": json.dumps(record), "recurra": __version__}
    data = save(plain, metadata=metadata)
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:end])
    header[_METADATA] = metadata
    in_order = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The format pads its header with spaces.
    return data[:_LENGTH_BYTES] + in_order.ljust(end - _LENGTH_BYTES) + data[end:]


def read_tensor_file(
    file: Path, expected: Mapping[str, TensorSpec], *, optional: Collection[str] = ()
) -> tuple[Tensors, dict[str, Any]]:
    """Read a file that holds the expected tensors and no others.

    Args:
        expected: what each tensor must be, by name.
        optional: names of those that may be missing.

    Returns:
        The tensors, and the record that was written with them.

    Raises:
        RunError: the file is missing, is no safetensors file, or anything in it is not as
            expected, or a number in it is NaN or infinite; names the file and the tensor.
    """
    with opened_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(_LENGTH_BYTES)
        length = _header_length(start, file)
        header = stream.read(length)
        entries, record = _parse_header(header, length, file)
        wanted = _LENGTH_BYTES + length + _check_entries(entries, expected, optional, file)
        if size != wanted:
            raise RunError(f"{file} is damaged: it has {size:,} bytes, and should have {wanted:,}")
        tensors = _load(stream, start + header, size, file)
    _check_finite(tensors, file)
    return tensors, record


def _load(stream: BinaryIO, beginning: bytes, size: int, file: Path) -> Tensors:
    """Read the whole file, whose header was checked."""
    try:
        stream.seek(0)
        data = stream.read(size)
        # Another process may write to the file while it is read.
        if not data.startswith(beginning):
            raise RunError(f"{file} has changed while it was read")
        return load(data)
    except SafetensorError as error:
        raise RunError(f"{file} is damaged: {error}") from error
    except MemoryError as error:
        raise RunError(f"there is not the memory for the {size:,} bytes of {file}") from error


def _header_length(start: bytes, file: Path) -> int:
    if len(start) < _LENGTH_BYTES:
        raise RunError(f"{file} is no safetensors file: it has only {len(start)} bytes")
    length = int.from_bytes(start, "little")
    # A length may begin like a pickle, but then it is a small number.
    if length > MAX_HEADER_BYTES and start.startswith(_PICKLES):
        raise RunError(f"{file} looks like a pickle of PyTorch's; recurra never reads one")
    if length > MAX_HEADER_BYTES:
        raise RunError(
            f"{file} is no safetensors file: its header would have {length:,} bytes, and the most"
            f" is {MAX_HEADER_BYTES:,}"
        )
    return length


def _parse_header(data: bytes, length: int, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of the tensors, and the record."""
    if len(data) < length:
        raise RunError(f"{file} is damaged: it ends within its header")
    header = parse_json(data, file)
    record = _record(header.pop(_METADATA, None), file)
    return header, record


def _check_entries(
    entries: dict[str, Any],
    expected: Mapping[str, TensorSpec],
    optional: Collection[str],
    file: Path,
) -> int:
    """Hold the entries against what is expected; how many bytes the tensors take."""
    for name in entries.keys() - expected.keys():
        raise RunError(f"{file} does not fit its config.json: it has a tensor {shortened(name)}")
    for name in expected:
        if name not in entries and name not in optional:
            raise RunError(f"{file} does not fit its config.json: tensor {name!r} is missing")
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: _start(item[1])):
        position = _check_entry(name, entry, expected[name], position, file)
    return position


def _record(metadata: Any, file: Path) -> dict[str, Any]:
    texts = metadata if isinstance(metadata, dict) else {}
    if metadata not in (None, texts) or not all(isinstance(v, str) for v in texts.values()):
        raise RunError(f"{file} is damaged: {_METADATA} in its header must hold texts")
    return parse_json(texts.get("record", "{}").encode("utf-8", "surrogatepass"), file)


def _start(entry: Any) -> int:
    """Where a tensor begins, as the header has it; nonsense is found by the check of the entry."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    is_pair = isinstance(offsets, list) and len(offsets) == 2 and _is_size(offsets[0])
    return offsets[0] if is_pair and offsets is not None else 0


def _check_entry(name: str, entry: Any, spec: TensorSpec, position: int, file: Path) -> int:
    """Hold one tensor's entry against its specification; where the next one must begin."""
    wanted = {
        "dtype": _NAMES[spec.dtype],
        "shape": list(spec.shape),
        "data_offsets": [position, position + spec.num_bytes],
    }
    found = entry if isinstance(entry, dict) else {}
    for field, value in wanted.items():
        if not _is_same(found.get(field), value):
            raise RunError(
                f"{file} does not fit its config.json: {field} of tensor {name!r} is"
                f" {shortened(found.get(field))}, and should be {value!r}"
            )
    if found.keys() != wanted.keys():
        raise RunError(f"{file} is damaged: tensor {name!r} has unknown fields")
    return position + spec.num_bytes


def _is_same(found: Any, wanted: object) -> bool:
    """Whether a value of the header is the wanted one: in Python True equals 1, and 2.0 two."""
    if isinstance(found, list) and not all(map(_is_size, found)):
        return False
    return bool(found == wanted)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_finite(tensors: Tensors, file: Path) -> None:
    for name, tensor in tensors.items():
        # Both extremes are NaN where any number is, and to find them takes no memory.
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor))
            if not bool(torch.isfinite(extremes).all()):
                raise RunError(
                    f"{file} is damaged: tensor {name!r} has numbers that are not finite"
                )
