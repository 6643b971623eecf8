// The output layer and its loss: logits, softmax and cross-entropy of a chunk of rows at a time, so
// that the gradient of the logits is written where the logits were, while they are in the cache.
#include <cmath>

#include "kernels.h"
#include "product.h"
#include "team.h"

namespace recurra {
namespace {

constexpr int kChunk = 2 * kTileRows;

// Row of logits (padded to whole panels) into the gradient of its loss times `weight`; the loss.
float into_gradient(float* row, int64_t size, int64_t target, float weight) {
  Vec highest = splat(row[0]);
  int64_t whole = size / kLanes * kLanes;
  for (int64_t v = 0; v < whole; v += kLanes) {
    Vec x = load(row + v);
    highest = x > highest ? x : highest;
  }
  float max = row[0];
  for (int i = 0; i < kLanes; i++) max = std::max(max, highest[i]);
  for (int64_t v = whole; v < size; v++) max = std::max(max, row[v]);
  float chosen = row[target];
  Vec sums = {};
  for (int64_t v = 0; v < size; v += kLanes) {
    int count = int(std::min<int64_t>(kLanes, size - v));
    // A NaN anywhere makes the sum one.
    Vec power = exp(load(row + v, count) - splat(max));
    if (count < kLanes)
      for (int i = count; i < kLanes; i++) power[i] = 0;
    sums += power;
    store(row + v, power, count);
  }
  float total = sum(sums);
  const Vec factor = splat(weight / total);
  for (int64_t v = 0; v < size; v += kLanes) {
    int count = int(std::min<int64_t>(kLanes, size - v));
    store(row + v, load(row + v, count) * factor, count);
  }
  row[target] -= weight;
  return std::log(total) + max - chosen;
}

template <class P>
void run_forward(const OutputLayer& o) {
  auto* packed = static_cast<typename P::Operand*>(o.packed);
  const int64_t width = panels(o.vocabulary) * kPanel;
  const int64_t size = P::panel_size(o.units), padded = o.units + o.units % 2;
  double losses[kMostThreads] = {};
#pragma omp parallel num_threads(std::min<int>(o.threads, kMostThreads))
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Range own = part(panels(o.vocabulary), thread, threads);
    for (int64_t p = own.begin; p < own.end; p++) {
      int columns = int(std::min<int64_t>(kPanel, o.vocabulary - p * kPanel));
      P::pack({o.weight + p * kPanel * o.units, 1, o.units}, o.units, columns, packed + p * size);
    }
#pragma omp barrier
    auto* operands = packed + panels(o.vocabulary) * size + thread * kChunk * padded;
    Range rows = part(o.rows, thread, threads);
    double loss = 0;
    for (int64_t first = rows.begin; first < rows.end; first += kChunk) {
      int count = int(std::min<int64_t>(kChunk, rows.end - first));
      auto* a = (typename P::Operand*)(o.hidden + first * o.units);
      if constexpr (P::kCopiesOperand) {
        a = operands;
        round_rows<P>(o.hidden + first * o.units, o.units, count, o.units, operands);
      }
      float* logits = o.logits + first * width;
      for (int64_t p = 0; p < panels(o.vocabulary); p++)
        P::multiply(count, o.units, a, P::kCopiesOperand ? padded : o.units, packed + p * size,
                    logits + p * kPanel, width, false);
      for (int r = 0; r < count; r++) {
        float* row = logits + r * width;
        for (int64_t v = 0; v < o.vocabulary; v += kLanes) {
          int lanes = int(std::min<int64_t>(kLanes, o.vocabulary - v));
          store(row + v, load(row + v, lanes) + load(o.bias + v, lanes), lanes);
        }
        std::fill(row + o.vocabulary, row + width, 0.0f);
        loss += into_gradient(row, o.vocabulary, o.targets[first + r], 1.0f / float(o.rows));
        if constexpr (P::kCopiesOperand)
          for (int64_t v = 0; v < width; v += kLanes)
            P::store_operand(
                static_cast<typename P::Operand*>(o.logit_operand) + (first + r) * width + v,
                load(row + v), kLanes);
      }
    }
    losses[thread] = loss;
  }
  double total = 0;
  for (double loss : losses) total += loss;
  *o.loss = float(total / double(o.rows));
}

template <class P>
void run_backward(const OutputLayer& o) {
  auto* packed = static_cast<typename P::Operand*>(o.packed);
  const int64_t width = panels(o.vocabulary) * kPanel, size = P::panel_size(o.vocabulary);
  const void* from = P::kCopiesOperand ? o.logit_operand : o.logits;
  auto* a = static_cast<const typename P::Operand*>(from);
#pragma omp parallel num_threads(std::min<int>(o.threads, kMostThreads))
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Range own = part(panels(o.units), thread, threads);
    for (int64_t p = own.begin; p < own.end; p++) {
      int columns = int(std::min<int64_t>(kPanel, o.units - p * kPanel));
      P::pack({o.weight + p * kPanel, o.units, 1}, o.vocabulary, columns, packed + p * size);
    }
#pragma omp barrier
    Range rows = part(o.rows, thread, threads);
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
    // The bias: each thread sums vectors of columns of its own.
    Range vectors = part(width / kLanes, thread, threads);
    for (int64_t v = vectors.begin * kLanes; v < vectors.end * kLanes; v += kLanes) {
      Vec total = {};
      for (int64_t r = 0; r < o.rows; r++) total += load(o.logits + r * width + v);
      if (v < o.vocabulary)
        store(o.grad_bias + v, total, int(std::min<int64_t>(kLanes, o.vocabulary - v)));
    }
  }
}

template <class P>
void run(const OutputLayer& o, bool forward) {
  forward ? run_forward<P>(o) : run_backward<P>(o);
}

void run(const OutputLayer& o, bool forward) {
  switch (o.kind) {
    case kSingle: return run<Single>(o, forward);
    case kRounded: return run<Rounded>(o, forward);
#if defined(__AVX512BF16__)
    case kPairs:
    case kTiles: return run<Pairs>(o, forward);
#endif
  }
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_output_forward(const recurra::OutputLayer* layer) {
  recurra::run(*layer, true);
}

RECURRA_EXPORT void recurra_output_backward(const recurra::OutputLayer* layer) {
  recurra::run(*layer, false);
}

RECURRA_EXPORT int64_t recurra_output_layer_bytes() { return sizeof(recurra::OutputLayer); }

// Numbers in a row of logits, and in `packed`: enough for either pass.
RECURRA_EXPORT int64_t recurra_logit_numbers(int64_t vocabulary) {
  return recurra::panels(vocabulary) * recurra::kPanel;
}

RECURRA_EXPORT int64_t recurra_output_numbers(int64_t threads, int64_t units, int64_t vocabulary) {
  using namespace recurra;
  int64_t padded = units + units % 2, columns = panels(vocabulary) * kPanel;
  int64_t operands = std::min<int64_t>(threads, kMostThreads) * kChunk * padded;
  int64_t forward = columns * padded + operands;
  int64_t backward = panels(units) * kPanel * (vocabulary + vocabulary % 2);
  return std::max(forward, backward);
}
