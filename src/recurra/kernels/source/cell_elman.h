// The Elman cells: h = phi(x + h W_hh') with phi = tanh or ReLU. The derivative follows from h.
#pragma once

#include "cell.h"

namespace recurra {

template <bool kRectified>
struct Elman {
  static constexpr int kGates = 1, kStates = 1, kSaved = 0, kInnerGates = 0;
  static constexpr bool kCarries = false;

  INLINE static Vec forward(const Spot& at, const ForwardRow& row, const Vec* product) {
    Vec a = at.read(row.projected) + product[0];
    return kRectified ? relu(a) : tanh(a);
  }

  INLINE static void backward(const Spot& at, const BackwardRow& row, Vec grad, float,
                              Vec* deltas) {
    Vec h = at.read(row.hidden);
    if (kRectified)
      deltas[0] = h > splat(0.0f) ? grad : splat(0.0f);
    else
      deltas[0] = grad * (splat(1.0f) - h * h);
  }
};

}  // namespace recurra
