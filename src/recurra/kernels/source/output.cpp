// The output layer and its loss: logits, softmax and cross-entropy of a chunk of rows at a time, so
// that the gradient of the logits is written where the logits were, while they are in the cache.
#include <cmath>

#include "kernels.h"
#include "large_vocabulary.h"
#include "pool.h"
#include "product.h"

namespace recurra {
namespace {

constexpr int kChunk = 2 * kTileRows;

// Replaces a row of logits (padded to whole panels) by the gradient of its loss times `weight`, and
// returns the loss.
float into_gradient(float* row, int64_t size, int64_t target, float weight) {
  Vec maxima = splat(row[0]);
  int64_t whole = size / kLanes * kLanes;
  for (int64_t v = 0; v < whole; v += kLanes) {
    Vec x = load(row + v);
    maxima = x > maxima ? x : maxima;
  }
  float max = row[0];
  for (int i = 0; i < kLanes; i++) max = std::max(max, maxima[i]);
  for (int64_t v = whole; v < size; v++) max = std::max(max, row[v]);
  float target_logit = row[target];
  Vec sums = {};
  for (int64_t v = 0; v < size; v += kLanes) {
    int count = int(std::min<int64_t>(kLanes, size - v));
    // A NaN anywhere makes the sum NaN.
    Vec exponential = exp(load(row + v, count) - splat(max));
    if (count < kLanes)
      for (int i = count; i < kLanes; i++) exponential[i] = 0;
    sums += exponential;
    store(row + v, exponential, count);
  }
  float denominator = sum(sums);
  const Vec factor = splat(weight / denominator);
  for (int64_t v = 0; v < size; v += kLanes) {
    int count = int(std::min<int64_t>(kLanes, size - v));
    store(row + v, load(row + v, count) * factor, count);
  }
  row[target] -= weight;
  return std::log(denominator) + max - target_logit;
}

template <class P>
class LossPass {
  typedef typename P::Operand Operand;

 public:
  explicit LossPass(const OutputLayer& o)
      : o_(o),
        width_(panels(o.vocabulary) * kPanel),
        padded_(o.units + o.units % 2),
        weight_{o.weight, 1, o.vocabulary, o.units, static_cast<Operand*>(o.packed)} {}

  void run() {
    double losses[kMaxThreads] = {};
    const int threads = thread_count(o_.threads);
    auto prepare = [&](int, int index, int64_t) {
      pack_part(weight_, index, threads);
      std::fill_n(bias_sums(index), width_, 0.0f);
    };
    auto multiply_rows = [&](int, int index, int64_t) {
      Range rows = part(o_.rows, index, threads);
      for (int64_t first = rows.begin; first < rows.end; first += kChunk)
        losses[index] += chunk(index, first, int(std::min<int64_t>(kChunk, rows.end - first)));
      P::finish();
    };
    const Grid grid{1, threads, 1};
    run_stages(threads, stage(grid, prepare), stage(grid, multiply_rows));
    double total = 0;
    for (double loss : losses) total += loss;
    *o_.loss = float(total / double(o_.rows));
    for (int64_t v = 0; v < o_.vocabulary; v++) {
      o_.grad_bias[v] = 0;
      for (int thread = 0; thread < threads; thread++) o_.grad_bias[v] += bias_sums(thread)[v];
    }
  }

 private:
  // Computes the gradients of the logits of some rows, and returns the sum of their losses.
  double chunk(int thread, int64_t first, int count) {
    const float* hidden = o_.hidden + first * o_.units;
    float* logits = gradient_or_scratch(thread, first);
    if constexpr (P::kCopiesOperand) {
      round_rows<P>(hidden, o_.units, count, o_.units, rounded(thread));
      multiply(count, rounded(thread), padded_, logits);
    } else {
      multiply(count, hidden, o_.units, logits);
    }
    double loss = 0;
    for (int r = 0; r < count; r++) {
      float* row = logits + r * width_;
      for (int64_t v = 0; v < o_.vocabulary; v += kLanes) {
        int lanes = int(std::min<int64_t>(kLanes, o_.vocabulary - v));
        store(row + v, load(row + v, lanes) + load(o_.bias + v, lanes), lanes);
      }
      std::fill(row + o_.vocabulary, row + width_, 0.0f);
      loss += into_gradient(row, o_.vocabulary, o_.targets[first + r], 1.0f / float(o_.rows));
      keep(row, first + r, bias_sums(thread));
    }
    return loss;
  }

  void multiply(int count, const Operand* rows, int64_t stride, float* logits) {
    for (int64_t p = 0; p < panels(o_.vocabulary); p++)
      P::multiply(count, o_.units, rows, stride, weight_.panel(p), logits + p * kPanel, width_,
                  false);
  }

  // Stores the gradient of one row for the backward pass, and adds it to the sums.
  void keep(const float* gradient, int64_t row, float* sums) {
    for (int64_t v = 0; v < width_; v += kLanes) {
      store(sums + v, load(sums + v) + load(gradient + v));
      if constexpr (P::kCopiesOperand)
        P::store_operand(static_cast<Operand*>(o_.grad_logits) + row * width_ + v,
                         load(gradient + v), kLanes);
    }
  }

  float* gradient_or_scratch(int thread, int64_t row) {
    if (P::kCopiesOperand) return bias_sums(thread) + width_;
    return static_cast<float*>(o_.grad_logits) + row * width_;
  }

  float* bias_sums(int thread) { return o_.spare + thread * (kChunk + 1) * width_; }

  Operand* rounded(int thread) {
    return weight_.packed + panels(o_.vocabulary) * P::panel_size(o_.units) +
           thread * kChunk * padded_;
  }

  const OutputLayer& o_;
  const int64_t width_, padded_;
  const PackedWeight<P> weight_;
};

// The gradient of the hidden states.
template <class P>
void run_backward(const OutputLayer& o) {
  auto* packed = static_cast<typename P::Operand*>(o.packed);
  const int64_t width = panels(o.vocabulary) * kPanel, size = P::panel_size(o.vocabulary);
  auto* a = static_cast<const typename P::Operand*>(o.grad_logits);
  const int threads = thread_count(o.threads);
  auto pack = [&](int, int index, int64_t) {
    Range own = part(panels(o.units), index, threads);
    for (int64_t p = own.begin; p < own.end; p++) {
      int columns = int(std::min<int64_t>(kPanel, o.units - p * kPanel));
      P::pack({o.weight + p * kPanel, o.units, 1}, o.vocabulary, columns, packed + p * size);
    }
  };
  auto multiply_rows = [&](int, int index, int64_t) {
    Range rows = part(o.rows, index, threads);
    for (int64_t first = rows.begin; first < rows.end; first += kChunk) {
      int count = int(std::min<int64_t>(kChunk, rows.end - first));
      for (int64_t p = 0; p < panels(o.units); p++) {
        alignas(64) float c[kChunk * kPanel];
        P::multiply(count, o.vocabulary, a + first * width, width, packed + p * size, c, kPanel,
                    false);
        int columns = int(std::min<int64_t>(kPanel, o.units - p * kPanel));
        for (int r = 0; r < count; r++)
          std::copy_n(c + r * kPanel, columns, o.grad_hidden + (first + r) * o.units + p * kPanel);
      }
    }
    P::finish();
  };
  const Grid grid{1, threads, 1};
  run_stages(threads, stage(grid, pack), stage(grid, multiply_rows));
}

enum class Pass { kForward, kBackward, kBlocks };

template <class P>
void run(const OutputLayer& o, Pass pass) {
  switch (pass) {
    case Pass::kForward: return LossPass<P>(o).run();
    case Pass::kBackward: return run_backward<P>(o);
    case Pass::kBlocks: return LargeVocabulary<P>(o).run();
  }
}

void run(const OutputLayer& o, Pass pass) {
  with_product(o.kind, [&](auto kind) { run<decltype(kind)>(o, pass); });
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_output_forward(const recurra::OutputLayer* layer) {
  recurra::run(*layer, recurra::Pass::kForward);
}

RECURRA_EXPORT void recurra_output_backward(const recurra::OutputLayer* layer) {
  recurra::run(*layer, recurra::Pass::kBackward);
}

RECURRA_EXPORT void recurra_output_in_blocks(const recurra::OutputLayer* layer) {
  recurra::run(*layer, recurra::Pass::kBlocks);
}

RECURRA_EXPORT int64_t recurra_output_layer_bytes() { return sizeof(recurra::OutputLayer); }

// Numbers in a row of logits, in `spare`, and in `packed`: enough for either pass.
RECURRA_EXPORT int64_t recurra_logit_numbers(int64_t vocabulary) {
  return recurra::panels(vocabulary) * recurra::kPanel;
}

RECURRA_EXPORT int64_t recurra_output_spare_numbers(int64_t threads, int64_t vocabulary) {
  using namespace recurra;
  return thread_count(threads) * (kChunk + 1) * panels(vocabulary) * kPanel;
}

RECURRA_EXPORT int64_t recurra_output_numbers(int64_t threads, int64_t units, int64_t vocabulary) {
  using namespace recurra;
  int64_t padded = units + units % 2, columns = panels(vocabulary) * kPanel;
  int64_t operands = thread_count(threads) * kChunk * padded;
  int64_t forward = columns * padded + operands;
  int64_t backward = panels(units) * kPanel * (vocabulary + vocabulary % 2);
  return std::max(forward, backward);
}

// Numbers in `spare` and `packed` of the computation in blocks.
RECURRA_EXPORT int64_t recurra_block_spare_numbers(int64_t threads, int64_t rows, int64_t units,
                                                   int64_t vocabulary, int32_t has_gradients) {
  using namespace recurra;
  const BlockSizes size(rows, units, vocabulary);
  return LargeVocabulary<Single>::numbers(size, vocabulary, thread_count(threads), has_gradients);
}

RECURRA_EXPORT int64_t recurra_block_numbers(int64_t threads, int64_t rows, int64_t units,
                                             int64_t vocabulary) {
  using namespace recurra;
  // The size for fp32 with an even depth is an upper bound for all kinds: the panels of some pad an
  // odd depth with a row of zeros.
  const BlockSizes size(rows, units + units % 2, vocabulary);
  return LargeVocabulary<Single>::operands(size, units + units % 2, thread_count(threads));
}
