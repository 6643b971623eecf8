// The gated recurrent unit. Saved: r, z, n and h_n. Deltas: r, z, n, and that of h_n.
#pragma once

#include "cell.h"

namespace recurra {

struct Gru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kInnerGates = 1;
  static constexpr bool kCarries = true;

  INLINE static Vec forward(const Spot& at, const ForwardRow& row, const Vec* product) {
    Vec r = sigmoid(at.read(row.projected, 0) + product[0]);
    Vec z = sigmoid(at.read(row.projected, 1) + product[1]);
    Vec h_n = row.inner_bias ? product[2] + at.read(row.inner_bias) : product[2];
    Vec n = tanh(at.read(row.projected, 2) + r * h_n);
    if (row.saved) {
      at.write(row.saved, r, 0);
      at.write(row.saved, z, 1);
      at.write(row.saved, n, 2);
      at.write(row.saved, h_n, 3);
    }
    return n + z * (at.read(row.hidden_before) - n);
  }

  INLINE static void backward(const Spot& at, const BackwardRow& row, Vec grad, float scale,
                              Vec* deltas) {
    const Vec one = splat(1.0f);
    Vec r = at.read(row.saved, 0), z = at.read(row.saved, 1);
    Vec n = at.read(row.saved, 2), h_n = at.read(row.saved, 3);
    Vec h = at.read(row.hidden_before);
    deltas[2] = grad * (one - z) * (one - n * n);
    deltas[3] = deltas[2] * r;
    deltas[0] = deltas[3] * h_n * (one - r);
    deltas[1] = grad * (h - n) * z * (one - z);
    at.write(row.carried, grad * z * splat(scale));
  }
};

}  // namespace recurra
