"""The structures of `source/kernels.h` and the cells of `source/cells.h`, read from the headers.

The headers are their only description: ctypes structures are built from them when this module is
imported. The library is compiled from the same headers and is named after their hash, so names,
order and types of the fields, and the order of the cells, cannot differ.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

HEADER = Path(__file__).parent / "source" / "kernels.h"
CELLS_HEADER = HEADER.with_name("cells.h")

_SCALARS: dict[str, Any] = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


class Description(ctypes.Structure):
    """Arguments of a kernel; each subclass is a structure of the header."""

    def point(self, **tensors: Tensor | None) -> None:
        """Set these fields to the addresses of contiguous tensors, which are kept alive."""
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors.values())
        self.point_strided(**tensors)

    def point_strided(self, **tensors: Tensor | None) -> None:
        """Set these fields to the addresses of tensors whose strides are separate fields."""
        for name, tensor in tensors.items():
            setattr(self, name, None if tensor is None else tensor.data_ptr())
        self._tensors = [*getattr(self, "_tensors", ()), *tensors.values()]


def read_structures(header: str) -> dict[str, type[Description]]:
    """Return a class for every `struct` of a header.

    Raises:
        ValueError: a field has a type that is not a scalar or a pointer.
    """
    found: dict[str, type[Description]] = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", _without_comments(header), _FLAGS):
        fields = tuple(_fields(body, found))
        found[name] = type(name, (Description,), {"_fields_": fields, "__module__": __name__})
    return found


def read_enumerations(header: str) -> dict[str, dict[str, int]]:
    """Return the members of every `enum` of a header, which are numbered from 0."""
    found = re.findall(r"^enum (\w+) : int32_t \{([^}]*)\};", _without_comments(header), _FLAGS)
    return {
        name: {member.strip(): value for value, member in enumerate(body.split(","))}
        for name, body in found
    }


def read_cells(header: str) -> dict[str, int]:
    """Return the number of every cell in the list `RECURRA_CELLS` of a header, by name."""
    names: list[str] = re.findall(r'\bCELL\("([^"]+)",', _without_comments(header))
    return {name: number for number, name in enumerate(names)}


_FLAGS = re.MULTILINE | re.DOTALL


def _without_comments(header: str) -> str:
    return re.sub(r"//[^\n]*", "", header)


def _fields(body: str, known: dict[str, type[Description]]) -> Iterator[tuple[str, Any]]:
    for declaration in filter(None, (part.strip() for part in body.split(";"))):
        match = re.fullmatch(
            r"(?:const )?(\w+)((?:\s*\*\s*(?:const\b)?)*)\s*(\w[\w, ]*)", declaration
        )
        if match is None:
            raise ValueError(f"cannot read the declaration {declaration!r}")
        kind, stars, names = match[1], match[2].count("*"), match[3]
        for name in names.split(","):
            yield name.strip(), _ctype(kind, stars, known)


def _ctype(kind: str, stars: int, known: dict[str, type[Description]]) -> Any:
    if stars == 2:
        return ctypes.POINTER(ctypes.c_void_p)
    if stars == 1:
        return ctypes.POINTER(known[kind]) if kind in known else ctypes.c_void_p
    if kind not in _SCALARS:
        raise ValueError(f"a field of type {kind!r} is neither a scalar nor a pointer")
    return _SCALARS[kind]


STRUCTURES = read_structures(HEADER.read_text("utf-8"))
ENUMERATIONS = read_enumerations(HEADER.read_text("utf-8"))

COMPILED_CELLS = read_cells(CELLS_HEADER.read_text("utf-8"))
"""The number of each cell that the kernels have, by its name in `config/cells.py`."""

CellLayout: type[Description] = STRUCTURES["CellLayout"]
Layer: type[Description] = STRUCTURES["Layer"]
GradientProduct: type[Description] = STRUCTURES["GradientProduct"]
DenseProduct: type[Description] = STRUCTURES["DenseProduct"]
OutputLayer: type[Description] = STRUCTURES["OutputLayer"]
Update: type[Description] = STRUCTURES["Update"]
Generation: type[Description] = STRUCTURES["Generation"]
LinearScan: type[Description] = STRUCTURES["LinearScan"]
