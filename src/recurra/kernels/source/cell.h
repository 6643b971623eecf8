// One time step of a cell: what happens to one vector of units of one row.
//
// Each cell is a struct in a header `cell_*.h` with these members, and a row in `cells.h`:
//
//   kGates       row blocks of W_hh, each of H rows
//   kStates      1 for h; 2 for h and c
//   kSaved       values per unit and step that `forward` saves for `backward`
//   kInnerGates  the number of gates, the last ones, whose recurrent part h W_hh' + b_hh is
//                multiplied before it is added: its bias is added in `forward`, and its delta is
//                separate from that of the inputs
//   kCarries     whether a gradient reaches h_{t-1} or c_{t-1} beside the recurrent product
//   forward      turns the recurrent product (kGates vectors) into the new h
//   backward     turns the gradient of h_t into the deltas: the gradients of what enters the
//                activations, kGates of them, then those of the inner gates' recurrent parts
//
// Equations and names are those of `recurrence/cells/`.
#pragma once

#include "vector.h"

namespace recurra {

// The vectors of one row at one step, all at the same units: `gate(p, k)` is p + k * H.
struct Spot {
  int64_t units;
  int count;  // lanes in use

  INLINE Vec read(const float* from, int gate = 0) const {
    return load(from + gate * units, count);
  }
  INLINE void write(float* to, Vec v, int gate = 0) const { store(to + gate * units, v, count); }
};

struct ForwardRow {
  const float* projected;   // G gates
  const float* inner_bias;  // b_hh of the inner gates, or null
  const float* hidden_before;
  const float* cells_before;
  float* cells;
  float* saved;  // null where nothing is saved
};

struct BackwardRow {
  const float* hidden_before;
  const float* hidden;
  const float* cells_before;
  const float* cells;
  const float* saved;
  float* carried;  // with one state what reaches h_{t-1} beside the product; with two dL/dc
};

// Deltas of a cell per unit and step.
template <class C>
constexpr int kDeltas = C::kGates + C::kInnerGates;

// Whether a cell has a second state, c.
template <class C>
constexpr bool kHasCells = C::kStates == 2;

}  // namespace recurra
