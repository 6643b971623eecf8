// The output layer and its loss for a large vocabulary: logits of a block of rows at a time, so
// that memory does not depend on the number of rows.
//
// The vocabulary is divided among the threads. A thread computes the logits of its entries and the
// gradients of their weights. The logits are transposed, so that the lanes of a vector are rows. A
// weight is read twice for each block of rows: for the logits, and, when the sums of the softmax
// are known, for the gradients. The threads share the packed rows of a block and the sums of their
// softmax, and add their parts of the gradient of the hidden states.
#pragma once

#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "pool.h"
#include "product.h"
#include "vocabulary_blocks.h"

namespace recurra {

template <class P>
class LargeVocabulary {
  typedef typename P::Operand Operand;

 public:
  explicit LargeVocabulary(const OutputLayer& o)
      : o_(o),
        size_(o.rows, o.units, o.vocabulary),
        threads_(thread_count(o.threads)),
        padded_(o.units + o.units % 2) {}

  // Operands in `packed`, and numbers in `spare`.
  static int64_t operands(const BlockSizes& size, int64_t units, int threads) {
    return shared_operands(size, units) + threads * thread_operands(size, units);
  }
  static int64_t numbers(const BlockSizes& size, int64_t vocabulary, int threads,
                         bool has_gradients) {
    return logit_numbers(size, vocabulary, threads, has_gradients) + size.rows +
           threads * thread_numbers(size, has_gradients);
  }

  void run() {
    double losses[kMaxThreads] = {};
    auto step = [&](int, int index, int64_t s) {
      const int64_t block = s / kSteps;
      if (s % kSteps == 0) {
        if (block > 0) losses[index] += finish(block - 1, index);
        if (block < size_.blocks) pack(block, index);
      } else if (s % kSteps == 1) {
        score(block, index);
      } else if (o_.grad_weight) {
        differentiate(block, index);
      }
      P::finish();
    };
    run_stages(threads_, stage({1, threads_, kSteps * size_.blocks + 1}, step));
    double total = 0;
    for (double loss : losses) total += loss;
    *o_.loss = float(total / double(o_.rows));
  }

 private:
  static constexpr int64_t kSteps = 3;  // of a block
  static constexpr int64_t kChunkEntries = 2 * kTileRows;

  int64_t first_row(int64_t block) const { return block * size_.rows; }
  int64_t count(int64_t block) const { return std::min(size_.rows, o_.rows - first_row(block)); }

  // Calls `work(first entry, number of entries)` for the slices of this thread's entries.
  template <class Work>
  void for_own_slices(int index, Work work) const {
    const Range own = part(panels(o_.vocabulary), index, threads_);
    const int64_t end = std::min(own.end * kPanel, o_.vocabulary);
    for (int64_t v = own.begin * kPanel; v < end; v += kSlice)
      work(v, std::min(kSlice, end - v), std::clamp<int64_t>(end - v - kSlice, 0, kSlice));
  }

  // Packs the rows of a block, for the logits and for the gradients of the weight.
  void pack(int64_t block, int index) const {
    const int64_t rows = count(block);
    const float* hidden = o_.hidden + first_row(block) * o_.units;
    Range own = part(size_.row_panels(), index, threads_);
    for (int64_t q = own.begin; q < own.end; q++) {
      int width = int(std::clamp<int64_t>(rows - q * kPanel, 0, kPanel));
      P::pack({hidden + q * kPanel * o_.units, 1, o_.units}, o_.units, width, columns(q));
    }
    if (!o_.grad_weight) return;
    own = part(panels(o_.units), index, threads_);
    for (int64_t u = own.begin; u < own.end; u++) {
      int width = int(std::min<int64_t>(kPanel, o_.units - u * kPanel));
      P::pack({hidden + u * kPanel, o_.units, 1}, rows, width, rows_of_units(u));
    }
  }

  // Computes the logits of this thread's entries, and their parts of the softmax denominators.
  void score(int64_t block, int index) const {
    std::fill_n(max_logit(index), size_.rows, -FLT_MAX);
    std::fill_n(denominator(index), size_.rows, 0.0f);
    for_own_slices(index, [&](int64_t v, int64_t entries, int64_t more) {
      Prefetcher prefetcher;
      prefetcher.add(o_.weight + (v + entries) * o_.units,
                     more * o_.units * int64_t(sizeof(float)));
      prefetcher.divide(2 * size_.row_panels());
      const float* weight = o_.weight + v * o_.units;
      const Operand* a;
      if constexpr (P::kCopiesOperand) {
        round_rows<P>(weight, o_.units, int(entries), o_.units, rounded(index));
        a = rounded(index);
      } else {
        a = weight;
      }
      const int64_t lda = P::kCopiesOperand ? padded_ : o_.units;
      for (int64_t q = 0; q < size_.row_panels(); q++) {
        float* tile = logits(v, entries, q, index);
        P::multiply(int(entries), o_.units, a, lda, columns(q), tile, kPanel, false);
        prefetcher.fetch();
        add_to_softmax(tile, entries, o_.bias + v, max_logit(index) + q * kPanel,
                       denominator(index) + q * kPanel);
        gather_targets(block, v, entries, q, tile);
        prefetcher.fetch();
      }
    });
  }

  // Adds the biases to a tile of logits, (entries, kPanel), and the exponentials of the logits to
  // the softmax denominators of the rows.
  static void add_to_softmax(float* tile, int64_t entries, const float* bias, float* max_logit,
                             float* denominator) {
    Vec before[2] = {load(max_logit), load(max_logit + kLanes)}, max[2] = {before[0], before[1]};
    for (int64_t v = 0; v < entries; v++)
      for (int half = 0; half < 2; half++) {
        float* at = tile + v * kPanel + half * kLanes;
        const Vec x = load(at) + splat(bias[v]);
        store(at, x);
        max[half] = x > max[half] ? x : max[half];
      }
    Vec sums[2] = {};
    for (int64_t v = 0; v < entries; v++)
      for (int half = 0; half < 2; half++)
        // A NaN anywhere makes the sum NaN.
        sums[half] += exp(load(tile + v * kPanel + half * kLanes) - max[half]);
    for (int half = 0; half < 2; half++) {
      store(max_logit + half * kLanes, max[half]);
      const Vec rescaled = load(denominator + half * kLanes) * exp(before[half] - max[half]);
      store(denominator + half * kLanes, rescaled + sums[half]);
    }
  }

  // Saves the logits of the targets that are in this tile.
  void gather_targets(int64_t block, int64_t v, int64_t entries, int64_t q,
                      const float* tile) const {
    for (int64_t r = q * kPanel; r < std::min((q + 1) * kPanel, count(block)); r++) {
      const int64_t entry = o_.targets[first_row(block) + r] - v;
      if (entry >= 0 && entry < entries) target_logits()[r] = tile[entry * kPanel + r - q * kPanel];
    }
  }

  // The maximum logit of each of kLanes rows, and the softmax denominator relative to it.
  struct Softmax {
    Vec max_logit, denominator;
  };
  Softmax softmax(int64_t row) const {
    Softmax all{load(max_logit(0) + row), {}};
    for (int i = 1; i < threads_; i++) {
      const Vec x = load(max_logit(i) + row);
      all.max_logit = x > all.max_logit ? x : all.max_logit;
    }
    for (int i = 0; i < threads_; i++)
      all.denominator += load(denominator(i) + row) * exp(load(max_logit(i) + row) - all.max_logit);
    return all;
  }

  // Computes the gradients of this thread's entries, and its part of those of the hidden states.
  void differentiate(int64_t block, int index) const {
    float *shifts = shift(index), *factor = shift(index) + size_.rows;
    for (int64_t r = 0; r < size_.rows; r += kLanes) {
      const Softmax all = softmax(r);
      store(shifts + r, all.max_logit);
      store(factor + r, splat(1.0f / float(o_.rows)) / all.denominator);
    }
    // The rows of the last panel that do not exist have no gradient.
    std::fill(factor + count(block), factor + size_.rows, 0.0f);
    bool is_first = true;
    for_own_slices(index, [&](int64_t v, int64_t entries, int64_t more) {
      into_gradients(block, index, v, entries);
      Prefetcher prefetcher;
      const int64_t next = v + entries, bytes = more * o_.units * int64_t(sizeof(float));
      prefetcher.add(logits(next, more, 0, index), more * size_.rows * int64_t(sizeof(float)));
      prefetcher.add(o_.weight + next * o_.units, bytes);
      if (block > 0) prefetcher.add(o_.grad_weight + next * o_.units, bytes);
      const int64_t chunks = (entries + kChunkEntries - 1) / kChunkEntries;
      prefetcher.divide(panels(o_.units) * (size_.rows / kBlock + chunks));
      add_to_hidden(index, v, entries, !is_first, prefetcher);
      add_to_weight(block, index, v, entries, prefetcher);
      is_first = false;
    });
    if (is_first) std::fill_n(hidden_part(index), size_.rows * size_.units, 0.0f);
  }

  // Writes the gradients of the logits of a slice as operands, and adds those of the biases.
  void into_gradients(int64_t block, int index, int64_t v, int64_t entries) const {
    Operand* to = gradients(index);
    for (int64_t top = 0; top < entries; top += kLanes) {
      const int height = int(std::min<int64_t>(kLanes, entries - top));
      Vec sums[kLanes] = {};
      for (int i = 0; i < height; i++) {
        sums[i] = entry_gradients(index, logits(v, entries, 0, index) + (top + i) * kPanel,
                                  entries * kPanel, to + (top + i) * size_.stride);
      }
      transpose(sums);
      Vec all = {};
      for (int i = 0; i < kLanes; i++) all += sums[i];
      float* bias = o_.grad_bias + v + top;
      store(bias, block > 0 ? load(bias, height) + all : all, height);
    }
    const float weight = 1.0f / float(o_.rows);
    for (int64_t r = 0; r < count(block); r++) {
      const int64_t entry = o_.targets[first_row(block) + r] - v;
      if (entry < 0 || entry >= entries) continue;
      const int64_t q = r / kPanel;
      const float logit = logits(v, entries, q, index)[entry * kPanel + r % kPanel];
      const float* shifts = shift(index) + r;
      const float gradient = exp(splat(logit - shifts[0]))[0] * shifts[size_.rows] - weight;
      put(to + entry * size_.stride + r, gradient);
      o_.grad_bias[v + entry] -= weight;
    }
  }

  // Returns the sum over rows, in as many parts as a vector has lanes.
  Vec entry_gradients(int index, const float* from, int64_t tile, Operand* to) const {
    const float* shifts = shift(index);
    Vec sum = {};
    for (int64_t r = 0; r < size_.rows; r += kLanes) {
      const float* at = from + r / kPanel * tile + r % kPanel;
      const Vec g = exp(load(at) - load(shifts + r)) * load(shifts + size_.rows + r);
      put(to + r, g);
      sum += g;
    }
    return sum;
  }

  INLINE static void put(Operand* to, Vec v) {
    if constexpr (P::kCopiesOperand)
      P::store_operand(to, v, kLanes);
    else
      store(to, v);
  }

  static void put(Operand* to, float x) {
    if constexpr (P::kCopiesOperand)
      P::store_operand(to, splat(x), 1);
    else
      *to = x;
  }

  void add_to_hidden(int index, int64_t v, int64_t entries, bool add,
                     Prefetcher& prefetcher) const {
    Operand* block = blocks(index);
    const int64_t size = P::panel_size(kSlice) / kPanel * kBlock;
    for (int64_t b = 0; b < size_.rows / kBlock; b++)
      P::pack_block(gradients(index) + b * kBlock, size_.stride, entries, kBlock, block + b * size);
    Operand* panel = block + size_.rows / kBlock * size;
    for (int64_t u = 0; u < panels(o_.units); u++) {
      int width = int(std::min<int64_t>(kPanel, o_.units - u * kPanel));
      P::pack({o_.weight + v * o_.units + u * kPanel, o_.units, 1}, entries, width, panel);
      for (int64_t b = 0; b < size_.rows / kBlock; b++) {
        P::multiply_block(entries, block + b * size, panel,
                          hidden_part(index) + b * kBlock * size_.units + u * kPanel, size_.units,
                          add);
        prefetcher.fetch();
      }
    }
  }

  void add_to_weight(int64_t block, int index, int64_t v, int64_t entries,
                     Prefetcher& prefetcher) const {
    for (int64_t u = 0; u < panels(o_.units); u++) {
      const int64_t width = std::min<int64_t>(kPanel, o_.units - u * kPanel);
      float* to = o_.grad_weight + v * o_.units + u * kPanel;
      if (width == kPanel) {
        for (int64_t e = 0; e < entries; e += kChunkEntries) {
          P::multiply(int(std::min(kChunkEntries, entries - e)), count(block),
                      gradients(index) + e * size_.stride, size_.stride, rows_of_units(u),
                      to + e * o_.units, o_.units, block > 0);
          prefetcher.fetch();
        }
        continue;
      }
      alignas(64) float edge[kSlice * kPanel];
      P::multiply(int(entries), count(block), gradients(index), size_.stride, rows_of_units(u),
                  edge, kPanel, false);
      for (int64_t e = 0; e < entries; e++)
        for (int64_t i = 0; i < width; i++)
          to[e * o_.units + i] = edge[e * kPanel + i] + (block > 0 ? to[e * o_.units + i] : 0);
    }
  }

  // Adds the parts of the gradients of this thread's rows, and returns the sum of their losses.
  double finish(int64_t block, int index) const {
    const Range own = part(count(block), index, threads_);
    double loss = 0;
    for (int64_t r = own.begin; r < own.end; r++) {
      const Softmax all = softmax(r / kLanes * kLanes);
      const int lane = int(r % kLanes);
      const double nats = std::log(double(all.denominator[lane])) + double(all.max_logit[lane]) -
                          double(target_logits()[r]);
      loss += nats;
      if (o_.nats) o_.nats[first_row(block) + r] = nats;
      if (!o_.grad_weight) continue;
      float* to = o_.grad_hidden + (first_row(block) + r) * o_.units;
      for (int64_t u = 0; u < o_.units; u += kLanes) {
        Vec sum = load(hidden_part(0) + r * size_.units + u);
        for (int i = 1; i < threads_; i++) sum += load(hidden_part(i) + r * size_.units + u);
        store(to + u, sum, int(std::min<int64_t>(kLanes, o_.units - u)));
      }
    }
    return loss;
  }

  static int64_t column_operands(const BlockSizes& size, int64_t units) {
    return size.row_panels() * P::panel_size(units);
  }
  static int64_t shared_operands(const BlockSizes& size, int64_t units) {
    return column_operands(size, units) + panels(units) * P::panel_size(size.rows);
  }
  static int64_t gradient_operands(const BlockSizes& size) { return kSlice * size.stride; }
  static int64_t rounded_operands(int64_t units) { return kSlice * (units + units % 2); }
  static int64_t thread_operands(const BlockSizes& size, int64_t units) {
    const int64_t blocks = (size.rows + kPanel) * P::panel_size(kSlice) / kPanel;
    return rounded_operands(units) + gradient_operands(size) + blocks;
  }

  Operand* packed() const { return static_cast<Operand*>(o_.packed); }
  Operand* columns(int64_t q) const { return packed() + q * P::panel_size(o_.units); }
  Operand* rows_of_units(int64_t u) const {
    return packed() + column_operands(size_, o_.units) + u * P::panel_size(size_.rows);
  }
  Operand* rounded(int index) const {
    return packed() + shared_operands(size_, o_.units) + index * thread_operands(size_, o_.units);
  }
  Operand* gradients(int index) const { return rounded(index) + rounded_operands(o_.units); }
  Operand* blocks(int index) const { return gradients(index) + gradient_operands(size_); }

  // The logits of a panel of rows, (entries, kPanel): kept for the gradients, or else overwritten.
  float* logits(int64_t v, int64_t entries, int64_t q, int index) const {
    if (!o_.grad_weight) return o_.spare + index * kSlice * kPanel;
    return o_.spare + v * size_.rows + q * entries * kPanel;
  }
  static int64_t logit_numbers(const BlockSizes& size, int64_t vocabulary, int threads,
                               bool has_gradients) {
    return has_gradients ? vocabulary * size.rows : threads * kSlice * kPanel;
  }
  static int64_t thread_numbers(const BlockSizes& size, bool has_gradients) {
    return size.rows * (has_gradients ? 2 + 2 + size.units : 2);
  }
  float* target_logits() const {
    return o_.spare + logit_numbers(size_, o_.vocabulary, threads_, o_.grad_weight);
  }
  float* of_thread(int index) const {
    return target_logits() + size_.rows + index * thread_numbers(size_, o_.grad_weight);
  }
  float* max_logit(int index) const { return of_thread(index); }
  float* denominator(int index) const { return of_thread(index) + size_.rows; }
  float* shift(int index) const { return of_thread(index) + 2 * size_.rows; }  // and the factors
  float* hidden_part(int index) const { return of_thread(index) + 4 * size_.rows; }

  const OutputLayer& o_;
  const BlockSizes size_;
  const int threads_;
  const int64_t padded_;
};

}  // namespace recurra
