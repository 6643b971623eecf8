// The forward pass of a layer, a step at a time.
//
// At each step a thread takes its panels of units one after the other: the recurrent product of a
// chunk of rows goes to a buffer in the L1 cache, and the cell's equations turn it into the new
// state at once.
#pragma once

#include "cells.h"
#include "division.h"
#include "kernels.h"
#include "product.h"

namespace recurra {

constexpr int kChunk = 2 * kTileRows;  // rows whose product is held at a time

// The padded width of a row of operands. With an odd number of units, the last pair that a product
// reads can contain one number after the end of the row, wherever its columns begin. One or two
// numbers of padding keep this number out of the next row, and the width is even.
inline int64_t operand_width(int64_t numbers, int64_t units) {
  if (units % 2 == 0) return numbers;
  return numbers + (numbers % 2 ? 1 : 2);
}

// The division of a layer's steps, in both directions.
template <class C, class P>
Division divide_layer(const Layer& layer, int threads) {
  const StepSize size =
      step_size(layer.batch, layer.units, C::kGates, sizeof(typename P::Operand));
  return divide(threads, size, cache_sizes());
}

template <class C, class P>
class Forward {
 public:
  explicit Forward(const Layer& layer)
      : l_(layer),
        step_mask_(layer.keeps_two ? 1 : ~int64_t{0}),
        width_(operand_width(layer.units, layer.units)),
        weight_{layer.weight_hh, C::kGates, layer.units, layer.units,
                static_cast<typename P::Operand*>(layer.packed)} {}

  const PackedWeight<P>& weight() const { return weight_; }

  void prepare(const Share& share) {
    if constexpr (P::kCopiesOperand) {
      for (int64_t b = share.rows.begin; b < share.rows.end; b++)
        for (int64_t unit = share.panels.begin * kPanel; unit < end(share); unit += kLanes)
          P::store_operand(operand(0, b) + unit, load(hidden(0, b) + unit, count(unit)),
                           count(unit));
      // What follows the last unit is multiplied by zero, so it must be finite.
      const int64_t last = l_.keeps_two ? 1 : l_.steps;
      for (int64_t t = 0; t <= last; t++)
        for (int64_t b = share.rows.begin; b < share.rows.end; b++)
          for (int64_t unit = l_.units; unit < width_; unit++) operand(t, b)[unit] = 0;
    }
  }

  void step(const Share& share, int64_t t) {
    for (int64_t panel = share.panels.begin; panel < share.panels.end; panel++)
      for (int64_t b = share.rows.begin; b < share.rows.end; b += kChunk)
        chunk(t, panel, b, int(std::min<int64_t>(kChunk, share.rows.end - b)));
  }

  typename P::Operand* operand(int64_t t, int64_t b) const {
    void* start = P::kCopiesOperand ? l_.hidden_operand : l_.hidden;
    return static_cast<typename P::Operand*>(start) + row(t, b) * operand_stride();
  }

  int64_t operand_stride() const { return P::kCopiesOperand ? width_ : l_.units; }

  // The row of the state before step t, and of the step's projected inputs.
  int64_t row(int64_t t, int64_t b) const { return (t & step_mask_) * l_.batch + b; }

 private:
  void chunk(int64_t t, int64_t panel, int64_t first_row, int rows) {
    alignas(64) float products[C::kGates][kChunk * kPanel];
    for (int gate = 0; gate < C::kGates; gate++)
      P::multiply(rows, l_.units, operand(t, first_row), operand_stride(),
                  weight_.panel(panel, gate), products[gate], kPanel, false);
    for (int v = 0; v < 2; v++) {
      int64_t unit = panel * kPanel + v * kLanes;
      if (unit >= l_.units) return;
      if (count(unit) == kLanes)
        whole_rows(t, first_row, rows, unit, products[0] + v * kLanes);
      else
        partial_rows(t, first_row, rows, unit, count(unit), products[0] + v * kLanes);
    }
  }

  // Not inlined, so that the compiler allocates registers for each function separately.
  NO_INLINE void whole_rows(int64_t t, int64_t first_row, int rows, int64_t unit,
                            const float* products) {
    rows_of(t, first_row, rows, unit, kLanes, products);
  }

  NO_INLINE void partial_rows(int64_t t, int64_t first_row, int rows, int64_t unit, int count,
                              const float* products) {
    rows_of(t, first_row, rows, unit, count, products);
  }

  INLINE void rows_of(int64_t t, int64_t first_row, int rows, int64_t unit, int count,
                      const float* products) {
    const Spot spot{l_.units, count};
    for (int r = 0; r < rows; r++) {
      const int64_t b = first_row + r, before = row(t, b), after = row(t + 1, b);
      Vec product[C::kGates];
      for (int gate = 0; gate < C::kGates; gate++)
        product[gate] = load(products + gate * kChunk * kPanel + r * kPanel);
      const int64_t source = l_.ids ? l_.ids[t * l_.batch + b] : before;
      ForwardRow at{};
      at.projected = l_.projected + source * C::kGates * l_.units + unit;
      at.inner_bias = l_.inner_bias ? l_.inner_bias + unit : nullptr;
      at.hidden_before = hidden(t, b) + unit;
      if (kHasCells<C>) {
        at.cells_before = l_.cells + before * l_.units + unit;
        at.cells = l_.cells + after * l_.units + unit;
      }
      at.saved = l_.saved ? l_.saved + before * C::kSaved * l_.units + unit : nullptr;
      Vec h = C::forward(spot, at, product);
      spot.write(hidden(t + 1, b) + unit, h);
      if constexpr (P::kCopiesOperand) P::store_operand(operand(t + 1, b) + unit, h, count);
    }
  }

  int count(int64_t unit) const { return int(std::min<int64_t>(kLanes, l_.units - unit)); }
  int64_t end(const Share& share) const { return std::min(share.panels.end * kPanel, l_.units); }

  float* hidden(int64_t t, int64_t b) const { return l_.hidden + row(t, b) * l_.units; }

  const Layer& l_;
  // t & step_mask_ is the index of step t: t % 2 with keeps_two, otherwise t.
  const int64_t step_mask_;
  const int64_t width_;
  const PackedWeight<P> weight_;
};

}  // namespace recurra
