"""ctypes structures and enumerations that are read from the kernels' header."""

import ctypes

import pytest

from recurra.config.cells import CELL_TRAITS
from recurra.kernels import library, structures

HEADER = """
enum Shade : int32_t { kDark, kLight };
struct Point {
  int32_t shade, reserved;  // two in one declaration
  const float* const* rows;
  void* packed;
};
struct Line {
  const Point* points;
  double length;
};
"""


def test_read_structures_keeps_names_order_and_types_of_fields():
    found = structures.read_structures(HEADER)
    assert found["Point"]._fields_ == (
        ("shade", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("rows", ctypes.POINTER(ctypes.c_void_p)),
        ("packed", ctypes.c_void_p),
    )
    assert found["Line"]._fields_[0] == ("points", ctypes.POINTER(found["Point"]))
    assert found["Line"].length.offset == ctypes.sizeof(ctypes.c_void_p)


def test_read_structures_unknown_type_raises():
    with pytest.raises(ValueError, match="Colour"):
        structures.read_structures("struct Point {\n  Colour colour;\n};\n")


def test_read_enumerations_numbers_members_from_zero():
    assert structures.read_enumerations(HEADER) == {"Shade": {"kDark": 0, "kLight": 1}}


def test_read_cells_numbers_cells_in_order_of_rows():
    header = '#define RECURRA_CELLS(CELL) \\\n  CELL("a", A) \\\n  CELL("b-c", B<true>)\n'
    assert structures.read_cells(header) == {"a": 0, "b-c": 1}


@pytest.mark.skipif(not library.is_available(), reason="no compiled kernels")
@pytest.mark.parametrize("name", structures.COMPILED_CELLS)
def test_cell_layout_agrees_with_cell_traits(name):
    layout, traits = library.cell_layout(name), CELL_TRAITS[name]
    assert (layout.gates, layout.states) == (traits.num_gates, traits.num_states)
    assert layout.deltas == layout.gates + layout.inner_gates
    assert traits.reads_state


def test_structures_include_every_struct_of_the_header():
    declared = structures.HEADER.read_text("utf-8").count("\nstruct ")
    assert len(structures.STRUCTURES) == declared == 8
