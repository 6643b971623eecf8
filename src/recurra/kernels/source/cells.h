// One time step of every cell: what happens to one vector of units of one row.
//
// `forward` turns the recurrent product (kGates vectors) into the new state. `backward` turns the
// gradient of h_t into the deltas (gradients of what enters the activations) and into what reaches
// h_{t-1} and c_{t-1} beside the recurrent product. Equations and names are those of
// `recurrence/cells/` and `recurrence/backends/bptt_loops.py`.
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
  const float* projected;  // G gates
  const float* bias_hn;
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
  float* carried;  // GRU: what reaches h_{t-1} past the product; LSTM: dL/dc
};

template <bool kRectified>
struct Elman {
  static constexpr int kGates = 1, kSaved = 0, kDeltas = 1;
  static constexpr bool kHasCells = false, kCarries = false;

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

struct Gru {
  static constexpr int kGates = 3, kSaved = 4, kDeltas = 4;
  static constexpr bool kHasCells = false, kCarries = true;

  INLINE static Vec forward(const Spot& at, const ForwardRow& row, const Vec* product) {
    Vec r = sigmoid(at.read(row.projected, 0) + product[0]);
    Vec z = sigmoid(at.read(row.projected, 1) + product[1]);
    Vec h_n = row.bias_hn ? product[2] + at.read(row.bias_hn) : product[2];
    Vec n = tanh(at.read(row.projected, 2) + r * h_n);
    if (row.saved) {
      at.write(row.saved, r, 0);
      at.write(row.saved, z, 1);
      at.write(row.saved, n, 2);
      at.write(row.saved, h_n, 3);
    }
    return n + z * (at.read(row.hidden_before) - n);
  }

  // Deltas: r, z, n, and that of h_n.
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

struct Lstm {
  static constexpr int kGates = 4, kSaved = 4, kDeltas = 4;
  static constexpr bool kHasCells = true, kCarries = true;

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
