// Long short-term memory. Saved: i, f, g and o. Deltas: those of i, f, g and o.
#pragma once

#include "cell.h"

namespace recurra {

struct Lstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kInnerGates = 0;
  static constexpr bool kCarries = true;

  INLINE static Vec forward(const Spot& at, const ForwardRow& row, const Vec* product) {
    Vec i = sigmoid(at.read(row.projected, 0) + product[0]);
    Vec f = sigmoid(at.read(row.projected, 1) + product[1]);
    Vec g = tanh(at.read(row.projected, 2) + product[2]);
    Vec o = sigmoid(at.read(row.projected, 3) + product[3]);
    Vec c = f * at.read(row.cells_before) + i * g;
    at.write(row.cells, c);
    if (row.saved) {
      at.write(row.saved, i, 0);
      at.write(row.saved, f, 1);
      at.write(row.saved, g, 2);
      at.write(row.saved, o, 3);
    }
    return o * tanh(c);
  }

  INLINE static void backward(const Spot& at, const BackwardRow& row, Vec grad, float scale,
                              Vec* deltas) {
    const Vec one = splat(1.0f);
    Vec i = at.read(row.saved, 0), f = at.read(row.saved, 1);
    Vec g = at.read(row.saved, 2), o = at.read(row.saved, 3);
    Vec squashed = tanh(at.read(row.cells));
    Vec grad_c = at.read(row.carried) + grad * o * (one - squashed * squashed);
    deltas[0] = grad_c * g * i * (one - i);
    deltas[1] = grad_c * at.read(row.cells_before) * f * (one - f);
    deltas[2] = grad_c * i * (one - g * g);
    deltas[3] = grad * squashed * o * (one - o);
    at.write(row.carried, grad_c * f * splat(scale));
  }
};

}  // namespace recurra
