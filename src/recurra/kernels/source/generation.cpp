// Generation, token by token, inside one parallel region: the layers, the output layer and the
// choice of a token. Threads that share rows synchronize after each of these.
#include <vector>

#include "forward.h"
#include "sampling.h"

namespace recurra {
namespace {

template <class C, class P>
class Writer {
  typedef typename P::Operand Operand;

 public:
  explicit Writer(const Generation& g)
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

  // Returns the number of steps before a logit that is not finite.
  int64_t run() {
    std::vector<Group> groups(kMostThreads);
    for (Group& group : groups) group.done = g_.layers[0].steps;
#pragma omp parallel num_threads(std::min<int>(g_.threads, kMostThreads))
    {
      int thread = omp_get_thread_num(), threads = omp_get_num_threads();
      Share share = share_of(thread, threads, samples_, panels(units()));
      if (g_.packs) pack(thread, threads);
      for (auto& pass : passes_) pass.prepare(share);
#pragma omp barrier
      if (share.rows.size() > 0) write(share, thread % share.companions, groups[share.group]);
      P::finish();
    }
    int64_t done = g_.layers[0].steps;
    for (const Group& group : groups) done = std::min<int64_t>(done, group.done);
    return done;
  }

 private:
  // Threads that share rows. Each group stops by itself, so that its threads leave together.
  struct Group {
    Barrier barrier;
    std::atomic<int64_t> done;
  };

  void pack(int thread, int threads) {
    for (const auto& pass : passes_) pack_part(pass.weight(), thread, threads);
    for (const auto& input : inputs_)
      if (input.weight) pack_part(input, thread, threads);
    pack_part(head_, thread, threads);
  }

  void write(const Share& share, int companion, Group& group) {
    Barrier& barrier = group.barrier;
    Sampler sampler(g_);
    Range own_rows = part(share.rows.size(), companion, share.companions);
    Range own_panels = part(panels(g_.vocabulary), companion, share.companions);
    for (int64_t t = 0; t < group.done; t++) {
      for (size_t i = 0; i < passes_.size(); i++) {
        if (inputs_[i].weight) project(share, companion, barrier, int(i), t);
        passes_[i].step(share, t);
        barrier.wait(share.companions);
      }
      const auto& top = passes_.back();
      for (int64_t panel = own_panels.begin; panel < own_panels.end; panel++)
        P::multiply(int(share.rows.size()), units(), top.operand(t + 1, share.rows.begin),
                    top.operand_stride(), head_.panel(panel),
                    logits(share.rows.begin) + panel * kPanel, logits_width(), false);
      barrier.wait(share.companions);
      for (int64_t r = own_rows.begin; r < own_rows.end; r++)
        choose(sampler, share.rows.begin + r, t, group.done);
      barrier.wait(share.companions);
    }
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
  void project(const Share& share, int companion, Barrier& barrier, int layer, int64_t t) {
    const bool reads_layer = layer > 0;
    if (!reads_layer) {
      look_up(share, companion, t);
      barrier.wait(share.companions);
    }
    for (int64_t b = share.rows.begin; b < share.rows.end; b += kChunk) {
      int rows = int(std::min<int64_t>(kChunk, share.rows.end - b));
      const Operand* from = reads_layer ? passes_[layer - 1].operand(t + 1, b) : embedded(b);
      int64_t stride = reads_layer ? passes_[layer - 1].operand_stride() : embedded_width();
      for (int64_t panel = share.panels.begin; panel < share.panels.end; panel++)
        for (int gate = 0; gate < C::kGates; gate++)
          project_panel(layer, t * samples_ + b, rows, from, stride, panel, gate);
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
  void look_up(const Share& share, int companion, int64_t t) {
    Range own = part(share.rows.size(), companion, share.companions);
    for (int64_t b = share.rows.begin + own.begin; b < share.rows.begin + own.end; b++) {
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
};

template <class P>
int64_t write(const Generation& g) {
  int64_t steps = 0;
  with_cell(g.layers[0].cell, [&](auto cell) { steps = Writer<decltype(cell), P>(g).run(); });
  return steps;
}

}  // namespace
}  // namespace recurra

// Writes ids until T steps are done or a logit is not finite, and returns the number of valid
// steps.
RECURRA_EXPORT int64_t recurra_generate(const recurra::Generation* generation) {
  using namespace recurra;
  switch (generation->layers[0].kind) {
    case kSingle: return write<Single>(*generation);
    case kRounded: return write<Rounded>(*generation);
#if defined(__AVX512BF16__)
    case kPairs:
    case kTiles: return write<Pairs>(*generation);
#endif
  }
  return 0;
}

RECURRA_EXPORT int64_t recurra_generation_bytes() { return sizeof(recurra::Generation); }
