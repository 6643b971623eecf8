// Generation, token by token: the layers, the output layer and the sampling of a token. Threads
// that share rows synchronize after each of them.
#include <atomic>
#include <vector>

#include "forward.h"
#include "sampling.h"

namespace recurra {
namespace {

template <class C, class P>
class Generator {
  typedef typename P::Operand Operand;

 public:
  explicit Generator(const Generation& g)
      : g_(g),
        samples_(g.layers[0].batch),
        head_{g.head_weight, 1, g.vocabulary, units(), static_cast<Operand*>(g.packed_head)} {
    for (int i = 0; i < g.num_layers; i++) {
      passes_.emplace_back(g.layers[i]);
      inputs_.push_back({g.weights_ih[i], C::kGates, units(), i > 0 ? units() : g.embedding_size,
                         static_cast<Operand*>(g.packed_ih[i])});
    }
  }

  int64_t units() const { return g_.layers[0].units; }

  // Returns the number of steps before the first logit that is not finite: T if there is none.
  int64_t run() {
    const int threads = thread_count(g_.threads);
    division_ = divide_layer<C, P>(g_.layers[0], threads);
    groups_ = std::vector<Group>(division_.groups);
    for (Group& group : groups_) group.done = steps();
    for (int slot = 0; slot < division_.slots(); slot++)
      parts_.push_back(part_of(slot / division_.parts, slot % division_.parts));
    auto prepare = [&](int, int index, int64_t) {
      if (g_.packs) pack(index, threads);
      if (index >= division_.slots()) return;
      for (auto& pass : passes_) pass.prepare(parts_[index].share);
    };
    auto generate_tokens = [&](int group, int index, int64_t) {
      Part& part = parts_[group * division_.parts + index];
      if (division_.parts > 1)
        run_phase(part);
      else
        while (part.t < groups_[group].done) run_phase(part);
      P::finish();
    };
    // The only part of a group waits for no other, so it generates all tokens in a single step of
    // the grid.
    const Grid grid{division_.groups, division_.parts, division_.parts > 1 ? steps() * phases() : 1};
    run_stages(threads, stage({1, threads, 1}, prepare), stage(grid, generate_tokens));
    int64_t done = steps();
    for (const Group& group : groups_) done = std::min<int64_t>(done, group.done);
    return done;
  }

 private:
  // The number of valid steps of a group. Every part of the group reads it, and lowers it at a
  // logit that is not finite.
  struct alignas(64) Group {
    std::atomic<int64_t> done;
  };

  // What a part of a group computes, and the phase of the token that is next.
  struct alignas(64) Part {
    Share share;
    Range rows, head_panels;
    Sampler sampler;
    int64_t t, phase;
  };

  void pack(int thread, int threads) {
    for (const auto& pass : passes_) pack_part(pass.weight(), thread, threads);
    for (const auto& input : inputs_)
      if (input.weight) pack_part(input, thread, threads);
    pack_part(head_, thread, threads);
  }

  int64_t steps() const { return g_.layers[0].steps; }
  bool has_embedding() const { return inputs_[0].weight != nullptr; }

  // A token has a phase for the embedding, if there is one, one for each layer, one for the output
  // layer and one for sampling. The parts of a group wait for each other after each.
  int64_t phases() const { return int64_t(passes_.size()) + has_embedding() + 2; }

  Part part_of(int group, int index) const {
    const Share share = division_.share(group, index, samples_, panels(units()));
    const Range own = part(share.rows.size(), index, division_.parts);
    const Range rows{share.rows.begin + own.begin, share.rows.begin + own.end};
    return {share, rows, part(panels(g_.vocabulary), index, division_.parts), Sampler(g_), 0, 0};
  }

  void run_phase(Part& part) {
    std::atomic<int64_t>& done = groups_[part.share.group].done;
    // Each group stops by itself, so that all of its parts take the same number of steps.
    if (part.t > done) return;
    const int64_t layer = part.phase - has_embedding(), num_layers = int64_t(passes_.size());
    if (layer < 0) {
      look_up(part.rows, part.t);
    } else if (layer < num_layers) {
      if (inputs_[layer].weight) project(part.share, int(layer), part.t);
      passes_[layer].step(part.share, part.t);
    } else if (layer == num_layers) {
      multiply_head(part);
    } else {
      for (int64_t r = part.rows.begin; r < part.rows.end; r++)
        choose(part.sampler, r, part.t, done);
      part.t++;
      part.phase = 0;
      return;
    }
    part.phase++;
  }

  void multiply_head(const Part& part) {
    const auto& top = passes_.back();
    const int64_t first = part.share.rows.begin;
    for (int64_t panel = part.head_panels.begin; panel < part.head_panels.end; panel++)
      P::multiply(int(part.share.rows.size()), units(), top.operand(part.t + 1, first),
                  top.operand_stride(), head_.panel(panel), logits(first) + panel * kPanel,
                  logits_width(), false);
  }

  void choose(Sampler& sampler, int64_t sample, int64_t t, std::atomic<int64_t>& done) {
    double uniform = g_.uniforms ? g_.uniforms[t * samples_ + sample] : 0.0;
    int64_t token = sampler.choose(logits(sample), sample, uniform);
    if (token < 0) {
      for (int64_t known = done; t < known && !done.compare_exchange_weak(known, t);) {
      }
      token = 0;
    }
    g_.ids[(t + 1) * samples_ + sample] = token;
    if (g_.seen) g_.seen[sample * g_.vocabulary + token] = 1;
  }

  // x_t W_ih' and biases of a layer that reads numbers.
  void project(const Share& share, int layer, int64_t t) {
    const bool reads_layer = layer > 0;
    for (int64_t b = share.rows.begin; b < share.rows.end; b += kChunk) {
      int rows = int(std::min<int64_t>(kChunk, share.rows.end - b));
      const Operand* from = reads_layer ? passes_[layer - 1].operand(t + 1, b) : embedded(b);
      int64_t stride = reads_layer ? passes_[layer - 1].operand_stride() : embedded_width();
      for (int64_t panel = share.panels.begin; panel < share.panels.end; panel++)
        for (int gate = 0; gate < C::kGates; gate++)
          project_panel(layer, passes_[layer].row(t, b), rows, from, stride, panel, gate);
    }
  }

  void project_panel(int layer, int64_t first_row, int rows, const Operand* from, int64_t stride,
                     int64_t panel, int gate) {
    const auto& input = inputs_[layer];
    alignas(64) float product[kChunk * kPanel];
    P::multiply(rows, input.depth, from, stride, input.panel(panel, gate), product, kPanel, false);
    int64_t end = std::min((panel + 1) * kPanel, units());
    for (int64_t unit = panel * kPanel; unit < end; unit += kLanes) {
      int count = int(std::min<int64_t>(kLanes, end - unit));
      int64_t place = gate * units() + unit;
      const Vec bias = g_.biases[layer] ? load(g_.biases[layer] + place, count) : splat(0.0f);
      for (int r = 0; r < rows; r++) {
        float* to = g_.projected[layer] + (first_row + r) * C::kGates * units() + place;
        store(to, load(product + r * kPanel + unit - panel * kPanel) + bias, count);
      }
    }
  }

  // The embedding's rows of the tokens, as the product takes them.
  void look_up(Range rows, int64_t t) {
    for (int64_t b = rows.begin; b < rows.end; b++) {
      const float* from = g_.embedding + g_.ids[t * samples_ + b] * g_.embedding_size;
      for (int64_t e = 0; e < g_.embedding_size; e += kLanes) {
        int count = int(std::min<int64_t>(kLanes, g_.embedding_size - e));
        if constexpr (P::kCopiesOperand)
          P::store_operand(embedded(b) + e, load(from + e, count), count);
        else
          store(embedded(b) + e, load(from + e, count), count);
      }
      for (int64_t e = g_.embedding_size; e < embedded_width(); e++) embedded(b)[e] = 0;
    }
  }

  int64_t embedded_width() const { return g_.embedding_size + g_.embedding_size % 2; }
  Operand* embedded(int64_t b) const {
    return static_cast<Operand*>(g_.embedding_operand) + b * embedded_width();
  }

  int64_t logits_width() const { return panels(g_.vocabulary) * kPanel; }
  float* logits(int64_t sample) const { return g_.logits + sample * logits_width(); }

  const Generation& g_;
  int64_t samples_;
  std::vector<Forward<C, P>> passes_;
  std::vector<PackedWeight<P>> inputs_;
  const PackedWeight<P> head_;
  Division division_{};
  std::vector<Group> groups_;
  std::vector<Part> parts_;
};

template <class P>
int64_t generate(const Generation& g) {
  int64_t steps = 0;
  with_cell(g.layers[0].cell, [&](auto cell) { steps = Generator<decltype(cell), P>(g).run(); });
  return steps;
}

}  // namespace
}  // namespace recurra

// Generates ids until T steps are done or a logit is not finite, and returns the number of valid
// steps.
RECURRA_EXPORT int64_t recurra_generate(const recurra::Generation* generation) {
  using namespace recurra;
  int64_t steps = 0;
  with_product(generation->layers[0].kind,
               [&](auto kind) { steps = generate<decltype(kind)>(*generation); });
  return steps;
}

RECURRA_EXPORT int64_t recurra_generation_bytes() { return sizeof(recurra::Generation); }
