// One layer forward and backward through time. The loop over time is inside one parallel region.
#include "forward.h"

namespace recurra {
namespace {

// A range of the inner dimension of the backward product: first delta, first weight row, length.
struct Stretch {
  int64_t delta, weight, depth;  // in units
};

template <class C, bool kHasInnerGates = (C::kInnerGates > 0)>
struct Stretches {
  static constexpr Stretch at[] = {{0, 0, C::kGates}};
};

// The deltas of inner gates are those of the inputs; those of their recurrent parts come last.
template <class C>
struct Stretches<C, true> {
  static constexpr int kOuterGates = C::kGates - C::kInnerGates;
  static constexpr Stretch at[] = {{0, 0, kOuterGates}, {C::kGates, kOuterGates, C::kInnerGates}};
};

template <class C, class P>
class Backward {
 public:
  explicit Backward(const Layer& layer)
      : l_(layer), width_(operand_width(kDeltas<C> * layer.units, layer.units)) {
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

  void prepare(const Share& share) {
    Range units = units_of(share);
    for (int delta = 0; delta < kDeltas<C>; delta++)
      std::fill_n(bias(share.group, units.begin, delta), units.size(), 0.0f);
    if constexpr (kHasCells<C>)
      for (int64_t b = share.rows.begin; b < share.rows.end; b++)
        std::copy_n(l_.grad_cells + b * l_.units + units.begin, units.size(),
                    carried(b) + units.begin);
    if constexpr (P::kCopiesOperand)
      for (int64_t t = 0; t < l_.steps; t++)
        for (int64_t b = share.rows.begin; b < share.rows.end; b++)
          for (int64_t i = kDeltas<C> * l_.units; i < width_; i++) operand(t, b)[i] = 0;
  }

  // Called from the last step to the first; step -1 computes the gradient of the initial state.
  void step(const Share& share, int64_t t) {
    for (int64_t panel = share.panels.begin; panel < share.panels.end; panel++)
      for (int64_t b = share.rows.begin; b < share.rows.end; b += kChunk)
        chunk(share, t, panel, b, int(std::min<int64_t>(kChunk, share.rows.end - b)));
  }

  // Sums the bias gradients of all groups of rows in their order.
  void finish(int groups) {
    for (int64_t i = 0; i < kDeltas<C> * l_.units; i++) {
      float total = 0;
      for (int group = 0; group < groups; group++) total += bias(group, i, 0)[0];
      l_.grad_bias[i] = total;
    }
    if constexpr (kHasCells<C>) std::copy_n(carried(0), l_.batch * l_.units, l_.grad_initial_cells);
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
        whole_rows(share, t, first_row, rows, unit, product);
      else
        partial_rows(share, t, first_row, rows, unit, count, product);
    }
  }

  // Not inlined, so that the compiler allocates registers for each function separately.
  NO_INLINE void whole_rows(const Share& share, int64_t t, int64_t first_row, int rows,
                            int64_t unit, const float* product) {
    rows_of(share, t, first_row, rows, unit, kLanes, product);
  }

  NO_INLINE void partial_rows(const Share& share, int64_t t, int64_t first_row, int rows,
                              int64_t unit, int count, const float* product) {
    rows_of(share, t, first_row, rows, unit, count, product);
  }

  INLINE void rows_of(const Share& share, int64_t t, int64_t first_row, int rows, int64_t unit,
                      int count, const float* product) {
    const Spot spot{l_.units, count};
    Vec sums[kDeltas<C>] = {};
    for (int r = 0; r < rows; r++) {
      int64_t b = first_row + r;
      Vec grad = from_later(spot, b, unit, product ? product + r * kPanel : nullptr);
      if (t < 0) {
        spot.write(l_.grad_initial + b * l_.units + unit, grad);
        continue;
      }
      int64_t row = t * l_.batch + b;
      grad += spot.read(l_.grad_outputs + row * l_.units + unit);
      Vec deltas[kDeltas<C>];
      C::backward(spot, spot_of(row, b, unit), grad, l_.recurrent_scale, deltas);
      for (int delta = 0; delta < kDeltas<C>; delta++) {
        sums[delta] += deltas[delta];
        int64_t place = delta * l_.units + unit;
        if (l_.deltas) spot.write(l_.deltas + row * kDeltas<C> * l_.units + place, deltas[delta]);
        if constexpr (P::kCopiesOperand)
          P::store_operand(operand(t, b) + place, deltas[delta], count);
      }
    }
    if (t < 0) return;
    for (int delta = 0; delta < kDeltas<C>; delta++) {
      float* to = bias(share.group, unit, delta);
      store(to, load(to, count) + sums[delta], count);
    }
  }

  // The gradient that reaches h_t from later steps.
  Vec from_later(const Spot& spot, int64_t b, int64_t unit, const float* product) const {
    if (!product) return spot.read(l_.grad_hidden + b * l_.units + unit);
    Vec grad = splat(l_.recurrent_scale) * load(product);
    if (C::kCarries && !kHasCells<C>) grad += spot.read(carried(b) + unit);
    return grad;
  }

  BackwardRow spot_of(int64_t row, int64_t b, int64_t unit) const {
    BackwardRow at{};
    at.hidden_before = l_.hidden + row * l_.units + unit;
    at.hidden = at.hidden_before + l_.batch * l_.units;
    if (kHasCells<C>) {
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
    return start + (group * kDeltas<C> + delta) * l_.units + unit;
  }

  int64_t operand_stride() const { return P::kCopiesOperand ? width_ : kDeltas<C> * l_.units; }

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

// Packs the weight and prepares the shares, and then runs the steps `0` to `steps - 1` of each.
template <class C, class P, class Pass, class Pack, class Step>
void run_pass(const Layer& layer, Pass& pass, const Division& division, int64_t steps, Pack pack,
              Step step) {
  const int threads = thread_count(layer.threads);
  const int64_t num_panels = panels(layer.units);
  auto share_of = [&](int group, int part) {
    return division.share(group, part, layer.batch, num_panels);
  };
  auto prepare = [&](int, int index, int64_t) {
    pack(index, threads);
    if (index < division.slots())
      pass.prepare(share_of(index / division.parts, index % division.parts));
  };
  auto walk = [&](int group, int part, int64_t s) {
    const Share share = share_of(group, part);
    if (division.parts > 1)
      step(share, s);
    else
      for (s = 0; s < steps; s++) step(share, s);
    P::finish();
  };
  // Without other parts to wait for, a part runs through all steps at once.
  const Grid grid{division.groups, division.parts, division.parts > 1 ? steps : 1};
  run_stages(threads, stage({1, threads, 1}, prepare), stage(grid, walk));
}

template <class C, class P>
void run_forward(const Layer& layer) {
  Forward<C, P> pass(layer);
  auto pack = [&](int index, int parts) { pack_part(pass.weight(), index, parts); };
  auto step = [&](const Share& share, int64_t s) { pass.step(share, s); };
  run_pass<C, P>(layer, pass, divide_layer<C, P>(layer, thread_count(layer.threads)), layer.steps, pack, step);
}

template <class C, class P>
void run_backward(const Layer& layer) {
  Backward<C, P> pass(layer);
  auto pack = [&](int index, int parts) {
    Range own = part(panels(layer.units), index, parts);
    for (int64_t panel = own.begin; panel < own.end; panel++) pass.pack(panel);
  };
  auto step = [&](const Share& share, int64_t s) { pass.step(share, layer.steps - 1 - s); };
  const Division division = divide_layer<C, P>(layer, thread_count(layer.threads));
  run_pass<C, P>(layer, pass, division, layer.steps + 1, pack, step);
  pass.finish(division.groups);
}

template <class P>
void run(const Layer& layer, bool forward) {
  with_cell(layer.cell, [&](auto cell) {
    typedef decltype(cell) C;
    forward ? run_forward<C, P>(layer) : run_backward<C, P>(layer);
  });
}

void run(const Layer& layer, bool forward) {
  with_product(layer.kind, [&](auto kind) { run<decltype(kind)>(layer, forward); });
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_layer_forward(const recurra::Layer* layer) {
  recurra::run(*layer, true);
}

RECURRA_EXPORT void recurra_layer_backward(const recurra::Layer* layer) {
  recurra::run(*layer, false);
}

RECURRA_EXPORT void recurra_cell_layout(int32_t cell, recurra::CellLayout* layout) {
  recurra::with_cell(cell, [&](auto found) {
    typedef decltype(found) C;
    *layout = {C::kGates, C::kStates, C::kSaved, C::kInnerGates, recurra::kDeltas<C>};
  });
}

RECURRA_EXPORT int64_t recurra_layer_bytes() { return sizeof(recurra::Layer); }

// Numbers in a vector.
RECURRA_EXPORT int32_t recurra_lanes() { return recurra::kLanes; }

// Numbers in a packed weight (gates * units, depth); of a recurrent one, enough for either pass.
RECURRA_EXPORT int64_t recurra_packed_numbers(int64_t gates, int64_t units, int64_t depth) {
  return recurra::panels(units) * recurra::kPanel * gates * (depth + depth % 2);
}

// Numbers in `spare`.
RECURRA_EXPORT int64_t recurra_spare_numbers(int64_t threads, int64_t batch, int64_t units) {
  int64_t most = recurra::thread_count(threads);
  return (batch + most * recurra::kMostDeltas) * units;
}
