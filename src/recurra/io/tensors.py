"""Safetensors files, written deterministically and validated before memory is allocated.

The contents of a file are untrusted. Before a tensor is read, the file size, the length of the
header and every entry of the header are compared with the tensors that the caller expects. Only
then does the safetensors library read the file.
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
from recurra.io.files import opened_regular
from recurra.io.json_files import parse_json
from recurra.version import __version__

Tensors = dict[str, Tensor]

MAX_HEADER_BYTES = 1 << 22
"""Maximum size of the JSON header. The header of a model of 256 layers is 20 times smaller."""
_LENGTH_BYTES = 8
_DTYPE_NAMES = {torch.float32: "F32", torch.uint8: "U8", torch.int64: "I64"}
_METADATA = "__metadata__"
_PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
"""First bytes of a zip file, which torch.save writes, and of a bare pickle."""


class TensorSpec(NamedTuple):
    """Expected dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in a file, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def to_bytes(tensors: Tensors, record: dict[str, Any]) -> bytes:
    """Return the bytes of a safetensors file, with `record` as JSON in its header.

    The result is deterministic: the same tensors and record always give the same bytes. The order
    in which safetensors itself writes its metadata differs between processes.
    """
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", "record": json.dumps(record), "recurra": __version__}
    data = save(cpu_tensors, metadata=metadata)
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:end])
    header[_METADATA] = metadata
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The format pads its header with spaces.
    return data[:_LENGTH_BYTES] + ordered.ljust(end - _LENGTH_BYTES) + data[end:]


def read_tensor_file(
    file: Path, expected: Mapping[str, TensorSpec], *, optional: Collection[str] = ()
) -> tuple[Tensors, dict[str, Any]]:
    """Read a safetensors file that contains the expected tensors and no others.

    Args:
        file: path of the file.
        expected: dtype and shape of each tensor, by name.
        optional: names of the expected tensors that can be missing.

    Returns:
        The tensors by name, and the record that was written with them.

    Raises:
        RunError: if the file is missing or is not a safetensors file, a tensor is missing,
            unexpected or of another dtype or shape, or a value is NaN or infinite. The message
            names the file and the tensor.
    """
    with opened_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(_LENGTH_BYTES)
        length = _header_length(start, file)
        header = stream.read(length)
        entries, record = _parse_header(header, length, file)
        wanted = _LENGTH_BYTES + length + _check_entries(entries, expected, optional, file)
        if size != wanted:
            raise RunError(f"{file} is damaged: it has {size:,} bytes instead of {wanted:,}")
        tensors = _load(stream, start + header, size, file)
    _check_finite(tensors, file)
    return tensors, record


def _load(stream: BinaryIO, beginning: bytes, size: int, file: Path) -> Tensors:
    """Read the tensors of a file whose header was checked."""
    try:
        stream.seek(0)
        data = stream.read(size)
        # Another process could have written to the file since the header was checked.
        if not data.startswith(beginning):
            raise RunError(f"{file} has changed while it was read")
        return load(data)
    except SafetensorError as error:
        raise RunError(f"{file} is damaged: {error}") from error
    except MemoryError as error:
        raise RunError(f"not enough memory to read {file} ({size:,} bytes)") from error


def _header_length(start: bytes, file: Path) -> int:
    if len(start) < _LENGTH_BYTES:
        raise RunError(f"{file} is not a safetensors file: it has only {len(start)} bytes")
    length = int.from_bytes(start, "little")
    # A valid length can begin with the same bytes as a pickle, but is not larger than the limit.
    if length > MAX_HEADER_BYTES and start.startswith(_PICKLES):
        raise RunError(f"{file} appears to be a PyTorch pickle file, which recurra does not read")
    if length > MAX_HEADER_BYTES:
        raise RunError(
            f"{file} is not a safetensors file: its header would have {length:,} bytes; the limit"
            f" is {MAX_HEADER_BYTES:,}"
        )
    return length


def _parse_header(data: bytes, length: int, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries of the tensors and the record."""
    if len(data) < length:
        raise RunError(f"{file} is damaged: its header is truncated")
    header = parse_json(data, file)
    record = _parse_record(header.pop(_METADATA, None), file)
    return header, record


def _check_entries(
    entries: dict[str, Any],
    expected: Mapping[str, TensorSpec],
    optional: Collection[str],
    file: Path,
) -> int:
    """Compare the entries with the expected tensors and return the total size in bytes."""
    for name in entries.keys() - expected.keys():
        raise RunError(
            f"{file} does not match its config.json: it has an unexpected tensor {shortened(name)}"
        )
    for name in expected:
        if name not in entries and name not in optional:
            raise RunError(f"{file} does not match its config.json: tensor {name!r} is missing")
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: _start_offset(item[1])):
        position = _check_entry(name, entry, expected[name], position, file)
    return position


def _parse_record(metadata: Any, file: Path) -> dict[str, Any]:
    texts = metadata if isinstance(metadata, dict) else {}
    if metadata not in (None, texts) or not all(isinstance(v, str) for v in texts.values()):
        raise RunError(f"{file} is damaged: the values of {_METADATA} are not strings")
    return parse_json(texts.get("record", "{}").encode("utf-8", "surrogatepass"), file)


def _start_offset(entry: Any) -> int:
    """Return the start offset of a tensor, or 0 if it is invalid; `_check_entry` reports that."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    is_pair = isinstance(offsets, list) and len(offsets) == 2 and _is_size(offsets[0])
    return offsets[0] if is_pair and offsets is not None else 0


def _check_entry(name: str, entry: Any, spec: TensorSpec, position: int, file: Path) -> int:
    """Compare an entry with its specification and return the offset of the next tensor."""
    wanted = {
        "dtype": _DTYPE_NAMES[spec.dtype],
        "shape": list(spec.shape),
        "data_offsets": [position, position + spec.num_bytes],
    }
    found = entry if isinstance(entry, dict) else {}
    for field, value in wanted.items():
        if not _is_same(found.get(field), value):
            raise RunError(
                f"{file} does not match its config.json: {field} of tensor {name!r} is"
                f" {shortened(found.get(field))} instead of {value!r}"
            )
    if found.keys() != wanted.keys():
        raise RunError(f"{file} is damaged: tensor {name!r} has unknown fields")
    return position + spec.num_bytes


def _is_same(found: Any, wanted: object) -> bool:
    """Return whether a header value equals the expected one; True and 2.0 are not sizes."""
    if isinstance(found, list) and not all(map(_is_size, found)):
        return False
    return bool(found == wanted)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_finite(tensors: Tensors, file: Path) -> None:
    for name, tensor in tensors.items():
        # aminmax propagates NaN and allocates no tensor of the same size.
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor))
            if not bool(torch.isfinite(extremes).all()):
                raise RunError(f"{file} is damaged: tensor {name!r} has values that are not finite")
