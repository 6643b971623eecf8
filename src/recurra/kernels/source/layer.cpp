// One layer forward and backward through time.
//
// The loop over time stands inside one parallel region. At each step a thread takes its panels of
// units one after the other: the recurrent product of a chunk of rows goes to a buffer in the L1
// cache, and the cell's equations turn it into the new state at once.
#include "kernels.h"

#include "cells.h"
#include "product.h"
#include "team.h"

namespace recurra {
namespace {

constexpr int kChunk = 2 * kTileRows;  // rows whose product is held at a time

// Numbers in a row of operands: pairs must not end in the middle, wherever in the row they start.
int64_t operand_width(int64_t numbers, int64_t units) {
  if (units % 2 == 0) return numbers;
  return numbers + (numbers % 2 ? 1 : 2);
}

// A stretch of the inner dimension of the backward product: these deltas meet these weight rows.
struct Stretch {
  int64_t delta, weight, depth;  // in units
};

template <class C>
struct Stretches {
  static constexpr int kCount = 1;
  static constexpr Stretch at[] = {{0, 0, C::kGates}};
};

// The GRU's third delta is the inputs' alone; its fourth is what h_n got.
template <>
struct Stretches<Gru> {
  static constexpr int kCount = 2;
  static constexpr Stretch at[] = {{0, 0, 2}, {3, 2, 1}};
};

template <class C, class P>
class Forward {
 public:
  explicit Forward(const Layer& layer)
      : l_(layer), width_(operand_width(layer.units, layer.units)) {}

  void pack(int64_t index) {
    int64_t panel = index / C::kGates, gate = index % C::kGates;
    int64_t first = panel * kPanel;
    int width = int(std::min<int64_t>(kPanel, l_.units - first));
    Layout weight{l_.weight_hh + (gate * l_.units + first) * l_.units, 1, l_.units};
    P::pack(weight, l_.units, width, packed(panel, int(gate)));
  }

  int64_t num_packs() const { return panels(l_.units) * C::kGates; }

  void prepare(const Share& share) {
    if constexpr (P::kCopiesOperand) {
      for (int64_t b = share.rows.begin; b < share.rows.end; b++)
        for (int64_t unit = share.panels.begin * kPanel; unit < end(share); unit += kLanes)
          P::store_operand(operand(0, b) + unit, load(hidden(0, b) + unit, count(unit)),
                           count(unit));
      // What lies behind the last unit is multiplied by zero, so it must be a number.
      for (int64_t t = 0; t <= l_.steps; t++)
        for (int64_t b = share.rows.begin; b < share.rows.end; b++)
          for (int64_t unit = l_.units; unit < width_; unit++) operand(t, b)[unit] = 0;
    }
  }

  void step(const Share& share, int64_t t) {
    for (int64_t panel = share.panels.begin; panel < share.panels.end; panel++)
      for (int64_t b = share.rows.begin; b < share.rows.end; b += kChunk)
        chunk(t, panel, b, int(std::min<int64_t>(kChunk, share.rows.end - b)));
  }

 private:
  void chunk(int64_t t, int64_t panel, int64_t first_row, int rows) {
    alignas(64) float products[C::kGates][kChunk * kPanel];
    for (int gate = 0; gate < C::kGates; gate++)
      P::multiply(rows, l_.units, operand(t, first_row), operand_stride(), packed(panel, gate),
                  products[gate], kPanel, false);
    for (int v = 0; v < 2; v++) {
      int64_t unit = panel * kPanel + v * kLanes;
      if (unit >= l_.units) return;
      if (count(unit) == kLanes)
        rows_of(t, first_row, rows, unit, kLanes, products[0] + v * kLanes);
      else
        rows_of(t, first_row, rows, unit, count(unit), products[0] + v * kLanes);
    }
  }

  INLINE void rows_of(int64_t t, int64_t first_row, int rows,
                                                     int64_t unit, int count,
                                                     const float* products) {
    const Spot spot{l_.units, count};
    for (int r = 0; r < rows; r++) {
      int64_t b = first_row + r, row = t * l_.batch + b;
      Vec product[C::kGates];
      for (int gate = 0; gate < C::kGates; gate++)
        product[gate] = load(products + gate * kChunk * kPanel + r * kPanel);
      int64_t source = l_.ids ? l_.ids[row] : row;
      ForwardRow at{};
      at.projected = l_.projected + source * C::kGates * l_.units + unit;
      at.bias_hn = l_.bias_hn ? l_.bias_hn + unit : nullptr;
      at.hidden_before = hidden(t, b) + unit;
      if (C::kHasCells) {
        at.cells_before = l_.cells + row * l_.units + unit;
        at.cells = l_.cells + (row + l_.batch) * l_.units + unit;
      }
      at.saved = l_.saved ? l_.saved + row * C::kSaved * l_.units + unit : nullptr;
      Vec h = C::forward(spot, at, product);
      spot.write(hidden(t + 1, b) + unit, h);
      if constexpr (P::kCopiesOperand) P::store_operand(operand(t + 1, b) + unit, h, count);
    }
  }

  int count(int64_t unit) const { return int(std::min<int64_t>(kLanes, l_.units - unit)); }
  int64_t end(const Share& share) const { return std::min(share.panels.end * kPanel, l_.units); }

  float* hidden(int64_t t, int64_t b) const { return l_.hidden + (t * l_.batch + b) * l_.units; }

  int64_t operand_stride() const { return P::kCopiesOperand ? width_ : l_.units; }

  typename P::Operand* operand(int64_t t, int64_t b) const {
    void* start = P::kCopiesOperand ? l_.hidden_operand : l_.hidden;
    return static_cast<typename P::Operand*>(start) + (t * l_.batch + b) * operand_stride();
  }

  typename P::Operand* packed(int64_t panel, int gate) const {
    return static_cast<typename P::Operand*>(l_.packed) +
           (panel * C::kGates + gate) * P::panel_size(l_.units);
  }

  const Layer& l_;
  const int64_t width_;
};

template <class C, class P>
class Backward {
 public:
  explicit Backward(const Layer& layer)
      : l_(layer), width_(operand_width(C::kDeltas * layer.units, layer.units)) {
    for (const Stretch& stretch : Stretches<C>::at)
      panel_size_ += P::panel_size(stretch.depth * l_.units);
  }

  void pack(int64_t panel) {
    int64_t first = panel * kPanel;
    int width = int(std::min<int64_t>(kPanel, l_.units - first));
    auto* to = packed(panel);
    for (const Stretch& stretch : Stretches<C>::at) {
      int64_t depth = stretch.depth * l_.units;
      Layout weight{l_.weight_hh + stretch.weight * l_.units * l_.units + first, l_.units, 1};
      P::pack(weight, depth, width, to);
      to += P::panel_size(depth);
    }
  }

  int64_t num_packs() const { return panels(l_.units); }

  void prepare(const Share& share) {
    Range units = units_of(share);
    for (int delta = 0; delta < C::kDeltas; delta++)
      std::fill_n(bias(share.group, units.begin, delta), units.size(), 0.0f);
    if constexpr (C::kHasCells)
      for (int64_t b = share.rows.begin; b < share.rows.end; b++)
        std::copy_n(l_.grad_cells + b * l_.units + units.begin, units.size(),
                    carried(b) + units.begin);
    if constexpr (P::kCopiesOperand)
      for (int64_t t = 0; t < l_.steps; t++)
        for (int64_t b = share.rows.begin; b < share.rows.end; b++)
          for (int64_t i = C::kDeltas * l_.units; i < width_; i++) operand(t, b)[i] = 0;
  }

  // From the last step back to the first; step -1 makes the gradient of the initial state.
  void step(const Share& share, int64_t t) {
    for (int64_t panel = share.panels.begin; panel < share.panels.end; panel++)
      for (int64_t b = share.rows.begin; b < share.rows.end; b += kChunk)
        chunk(share, t, panel, b, int(std::min<int64_t>(kChunk, share.rows.end - b)));
  }

  // The bias gradients of all groups of rows, summed in their order.
  void finish(int groups) {
    for (int64_t i = 0; i < C::kDeltas * l_.units; i++) {
      float total = 0;
      for (int group = 0; group < groups; group++) total += bias(group, i, 0)[0];
      l_.grad_bias[i] = total;
    }
    if constexpr (C::kHasCells)
      std::copy_n(carried(0), l_.batch * l_.units, l_.grad_initial_cells);
  }

 private:
  void chunk(const Share& share, int64_t t, int64_t panel, int64_t first_row, int rows) {
    alignas(64) float products[kChunk * kPanel];
    if (t + 1 < l_.steps) {
      const auto* weight = packed(panel);
      for (const Stretch& stretch : Stretches<C>::at) {
        int64_t depth = stretch.depth * l_.units;
        P::multiply(rows, depth, operand(t + 1, first_row) + stretch.delta * l_.units,
                    operand_stride(), weight, products, kPanel, stretch.delta > 0);
        weight += P::panel_size(depth);
      }
    }
    for (int v = 0; v < 2; v++) {
      int64_t unit = panel * kPanel + v * kLanes;
      if (unit >= l_.units) return;
      int count = int(std::min<int64_t>(kLanes, l_.units - unit));
      const float* product = t + 1 < l_.steps ? products + v * kLanes : nullptr;
      if (count == kLanes)
        rows_of(share, t, first_row, rows, unit, kLanes, product);
      else
        rows_of(share, t, first_row, rows, unit, count, product);
    }
  }

  INLINE void rows_of(const Share& share, int64_t t,
                                                     int64_t first_row, int rows, int64_t unit,
                                                     int count, const float* product) {
    const Spot spot{l_.units, count};
    Vec sums[C::kDeltas] = {};
    for (int r = 0; r < rows; r++) {
      int64_t b = first_row + r;
      Vec grad = from_later(spot, b, unit, product ? product + r * kPanel : nullptr);
      if (t < 0) {
        spot.write(l_.grad_initial + b * l_.units + unit, grad);
        continue;
      }
      int64_t row = t * l_.batch + b;
      grad += spot.read(l_.grad_outputs + row * l_.units + unit);
      Vec deltas[C::kDeltas];
      C::backward(spot, spot_of(row, b, unit), grad, l_.recurrent_scale, deltas);
      for (int delta = 0; delta < C::kDeltas; delta++) {
        sums[delta] += deltas[delta];
        int64_t place = delta * l_.units + unit;
        if (l_.deltas) spot.write(l_.deltas + row * C::kDeltas * l_.units + place, deltas[delta]);
        if constexpr (P::kCopiesOperand)
          P::store_operand(operand(t, b) + place, deltas[delta], count);
      }
    }
    if (t < 0) return;
    for (int delta = 0; delta < C::kDeltas; delta++) {
      float* to = bias(share.group, unit, delta);
      store(to, load(to, count) + sums[delta], count);
    }
  }

  // What reaches h_t from the steps behind it.
  Vec from_later(const Spot& spot, int64_t b, int64_t unit, const float* product) const {
    if (!product) return spot.read(l_.grad_hidden + b * l_.units + unit);
    Vec grad = splat(l_.recurrent_scale) * load(product);
    if (C::kCarries && !C::kHasCells) grad += spot.read(carried(b) + unit);
    return grad;
  }

  BackwardRow spot_of(int64_t row, int64_t b, int64_t unit) const {
    BackwardRow at{};
    at.hidden_before = l_.hidden + row * l_.units + unit;
    at.hidden = at.hidden_before + l_.batch * l_.units;
    if (C::kHasCells) {
      at.cells_before = l_.cells + row * l_.units + unit;
      at.cells = at.cells_before + l_.batch * l_.units;
    }
    at.saved = l_.saved + row * C::kSaved * l_.units + unit;
    if (C::kCarries) at.carried = carried(b) + unit;
    return at;
  }

  Range units_of(const Share& share) const {
    return {share.panels.begin * kPanel, std::min(share.panels.end * kPanel, l_.units)};
  }

  float* carried(int64_t b) const { return l_.spare + b * l_.units; }

  float* bias(int group, int64_t unit, int delta) const {
    float* start = l_.spare + (C::kCarries ? l_.batch * l_.units : 0);
    return start + (group * C::kDeltas + delta) * l_.units + unit;
  }

  int64_t operand_stride() const { return P::kCopiesOperand ? width_ : C::kDeltas * l_.units; }

  typename P::Operand* operand(int64_t t, int64_t b) const {
    void* start = P::kCopiesOperand ? l_.delta_operand : l_.deltas;
    return static_cast<typename P::Operand*>(start) + (t * l_.batch + b) * operand_stride();
  }

  typename P::Operand* packed(int64_t panel) const {
    return static_cast<typename P::Operand*>(l_.packed) + panel * panel_size_;
  }

  const Layer& l_;
  const int64_t width_;
  int64_t panel_size_ = 0;
};

template <class Pass>
void pack_all(Pass& pass, int thread, int threads) {
  Range own = part(pass.num_packs(), thread, threads);
  for (int64_t index = own.begin; index < own.end; index++) pass.pack(index);
}

template <class C, class P>
void run_forward(const Layer& layer) {
  Forward<C, P> pass(layer);
  Barrier barriers[kMostThreads];
#pragma omp parallel num_threads(std::min<int>(layer.threads, kMostThreads))
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Share share = share_of(thread, threads, layer.batch, panels(layer.units));
    pack_all(pass, thread, threads);
    pass.prepare(share);
#pragma omp barrier
    if (share.rows.size() > 0)
      for (int64_t t = 0; t < layer.steps; t++) {
        pass.step(share, t);
        barriers[share.group].wait(share.companions);
      }
    P::finish();
  }
}

template <class C, class P>
void run_backward(const Layer& layer) {
  Backward<C, P> pass(layer);
  Barrier barriers[kMostThreads];
  int groups = 0;
#pragma omp parallel num_threads(std::min<int>(layer.threads, kMostThreads))
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Share share = share_of(thread, threads, layer.batch, panels(layer.units));
    if (thread == 0) groups = share.groups;
    pack_all(pass, thread, threads);
    pass.prepare(share);
#pragma omp barrier
    if (share.rows.size() > 0)
      for (int64_t t = layer.steps - 1; t >= -1; t--) {
        pass.step(share, t);
        barriers[share.group].wait(share.companions);
      }
    P::finish();
  }
  pass.finish(groups);
}

template <class P>
void run(const Layer& layer, bool forward) {
  switch (layer.cell) {
    case kTanh:
      return forward ? run_forward<Elman<false>, P>(layer) : run_backward<Elman<false>, P>(layer);
    case kRelu:
      return forward ? run_forward<Elman<true>, P>(layer) : run_backward<Elman<true>, P>(layer);
    case kGru:
      return forward ? run_forward<Gru, P>(layer) : run_backward<Gru, P>(layer);
    case kLstm:
      return forward ? run_forward<Lstm, P>(layer) : run_backward<Lstm, P>(layer);
  }
}

void run(const Layer& layer, bool forward) {
  switch (layer.kind) {
    case kSingle:
      return run<Single>(layer, forward);
    case kRounded:
      return run<Rounded>(layer, forward);
#if defined(__AVX512BF16__)
    case kPairs:
      return run<Pairs>(layer, forward);
    case kTiles:
      return run<Tiles>(layer, forward);
#endif
  }
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_layer_forward(const recurra::Layer* layer) {
  recurra::run(*layer, true);
}

RECURRA_EXPORT void recurra_layer_backward(const recurra::Layer* layer) {
  recurra::run(*layer, false);
}

RECURRA_EXPORT int64_t recurra_layer_bytes() { return sizeof(recurra::Layer); }

// The kind of product for bfloat16 that suits this machine. Not kTiles yet: no machine with AMX was
// at hand to test it on.
RECURRA_EXPORT int32_t recurra_best_kind() {
#if defined(__AVX512BF16__)
  return recurra::kPairs;
#else
  return recurra::kRounded;
#endif
}

// Numbers in a packed recurrent weight, and in `spare`: enough for either pass.
RECURRA_EXPORT int64_t recurra_packed_numbers(int64_t gates, int64_t units) {
  int64_t depth = units + units % 2;
  return recurra::panels(units) * recurra::kPanel * gates * depth;
}

RECURRA_EXPORT int64_t recurra_spare_numbers(int64_t threads, int64_t batch, int64_t units) {
  return batch * units + std::min<int64_t>(threads, recurra::kMostThreads) * 4 * units;
}
