// The list of the cells. A new cell is a header `cell_*.h` and a row here.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cell_elman.h"
#include "cell_gru.h"
#include "cell_lstm.h"

// Name in `config/cells.py` and struct. `kernels/structures.py` reads the rows; a cell's number is
// its place.
#define RECURRA_CELLS(CELL)     \
  CELL("rnn", Elman<false>)     \
  CELL("rnn-relu", Elman<true>) \
  CELL("gru", Gru)              \
  CELL("lstm", Lstm)

namespace recurra {

// Calls `work` with the struct of a cell.
template <class Work>
void with_cell(int32_t number, Work work) {
  int32_t row = 0;
#define RECURRA_CALL(name, C) \
  if (number == row++) return work(C{});
  RECURRA_CELLS(RECURRA_CALL)
#undef RECURRA_CALL
}

#define RECURRA_CHECK(name, C)                                       \
  static_assert(C::kStates == 1 || (C::kStates == 2 && C::kCarries), \
                name ": h, or h and a carried c");                   \
  static_assert(C::kInnerGates < C::kGates, name ": at least one gate must not be an inner one");
RECURRA_CELLS(RECURRA_CHECK)
#undef RECURRA_CHECK

#define RECURRA_DELTAS(name, C) kDeltas<C>,
constexpr int kMostDeltas = std::max({RECURRA_CELLS(RECURRA_DELTAS) 0});
#undef RECURRA_DELTAS

}  // namespace recurra
