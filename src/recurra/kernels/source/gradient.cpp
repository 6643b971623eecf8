// The gradients of weights: one product over all rows of all steps, and the lookup's sums of rows.
#include <algorithm>

#include "kernels.h"
#include "pool.h"
#include "product.h"

namespace recurra {
namespace {

constexpr int64_t kDepth = 1024;  // rows whose panels and blocks stay in the L2 cache

// Ratio of the work of the busiest thread to the mean work of all `threads`.
double imbalance(int64_t items, int threads) {
  return double((items + threads - 1) / threads * threads) / double(items);
}

// c = a' b, where a is (rows, m) and b is (rows, n). Either the blocks of a are divided among the
// threads, which pack the panels of b together, or, if a has too few blocks, the panels of b are.
template <class P>
void multiply_transposed(const GradientProduct& g) {
  auto* a = static_cast<const typename P::Operand*>(g.a);
  auto* packed = static_cast<typename P::Operand*>(g.packed);
  const int64_t size = P::panel_size(std::min(kDepth, g.rows));
  const int threads = thread_count(g.threads);
  const int64_t num_blocks = (g.m + kBlock - 1) / kBlock;
  const bool by_blocks = imbalance(num_blocks, threads) <= imbalance(panels(g.n), threads);
  auto pack = [&](Range own, int64_t first, int64_t depth) {
    for (int64_t p = own.begin; p < own.end; p++) {
      int width = int(std::min<int64_t>(kPanel, g.n - p * kPanel));
      P::pack({g.b + first * g.ldb + p * kPanel, g.ldb, 1}, depth, width, packed + p * size);
    }
  };
  auto multiply = [&](int index, Range own, int64_t first, int64_t depth) {
    Range blocks = by_blocks ? part(num_blocks, index, threads) : Range{0, num_blocks};
    Range used = by_blocks ? Range{0, panels(g.n)} : own;
    typename P::Operand* block = packed + panels(g.n) * size + index * size / kPanel * kBlock;
    for (int64_t i = blocks.begin; i < blocks.end; i++) {
      int width = int(std::min<int64_t>(kBlock, g.m - i * kBlock));
      P::pack_block(a + first * g.lda + i * kBlock, g.lda, depth, width, block);
      for (int64_t p = used.begin; p < used.end; p++) {
        int columns = int(std::min<int64_t>(kPanel, g.n - p * kPanel));
        float* c = g.c + i * kBlock * g.ldc + p * kPanel;
        if (width == kBlock && columns == kPanel) {
          P::multiply_block(depth, block, packed + p * size, c, g.ldc, first > 0);
          continue;
        }
        alignas(64) float edge[kBlock * kPanel];
        P::multiply_block(depth, block, packed + p * size, edge, kPanel, false);
        for (int r = 0; r < width; r++)
          for (int n = 0; n < columns; n++)
            c[r * g.ldc + n] = edge[r * kPanel + n] + (first > 0 ? c[r * g.ldc + n] : 0);
      }
    }
    P::finish();
  };
  // Steps alternate: the threads pack panels together, and then multiply all of them.
  auto step = [&](int, int index, int64_t s) {
    const int64_t first = s / 2 * kDepth, depth = std::min(kDepth, g.rows - first);
    const Range own = part(panels(g.n), index, threads);
    s % 2 == 0 ? pack(own, first, depth) : multiply(index, own, first, depth);
  };
  run_stages(threads, stage({1, threads, 2 * ((g.rows + kDepth - 1) / kDepth)}, step));
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_multiply_transposed(const recurra::GradientProduct* product) {
  using namespace recurra;
  with_product(product->kind, [&](auto kind) { multiply_transposed<decltype(kind)>(*product); });
}

// Numbers in `packed`.
RECURRA_EXPORT int64_t recurra_transposed_numbers(int64_t threads, int64_t rows, int64_t n) {
  using namespace recurra;
  int64_t depth = std::min(kDepth, rows + rows % 2);
  return depth * (panels(n) * kPanel + thread_count(threads) * kBlock);
}

RECURRA_EXPORT int64_t recurra_gradient_product_bytes() { return sizeof(recurra::GradientProduct); }

namespace recurra {
namespace {

INLINE Vec widened(const float* from, int count) { return load(from, count); }

INLINE Vec widened(const Half* from, int count) {
  typedef Half Halves __attribute__((vector_size(kLanes * sizeof(Half))));
  Halves halves = {};
  std::memcpy(&halves, from, count * sizeof(Half));
  return (Vec)(__builtin_convertvector(halves, WordVec) << 16);
}

template <class Number>
void add_rows(int32_t threads, int64_t rows, int64_t width, int64_t stride, const int64_t* ids,
              const Number* from, int64_t cleared, float* table) {
  threads = thread_count(threads);
  run_parts(threads, [&](int index) {
    int64_t vectors = (width + kLanes - 1) / kLanes;
    Range own = part(vectors, index, threads);
    int64_t begin = own.begin * kLanes, end = std::min(own.end * kLanes, width);
    int64_t whole = begin + (end - begin) / kLanes * kLanes;
    if (begin < end)
      for (int64_t r = 0; r < cleared; r++)
        std::fill(table + r * width + begin, table + r * width + end, 0.0f);
    for (int64_t r = 0; r < rows; r++) {
      const Number* row = from + r * stride;
      float* to = table + ids[r] * width;
      for (int64_t i = begin; i < whole; i += kLanes)
        store(to + i, load(to + i) + widened(row + i, kLanes));
      if (int rest = int(end - whole))
        store(to + whole, load(to + whole, rest) + widened(row + whole, rest), rest);
    }
  });
}

}  // namespace
}  // namespace recurra

// The gradient of a lookup: rows (rows, width), `is_half` bfloat16, added to those of `table` that
// `ids` name. The first `cleared` rows of the table are set to zero before. Each thread has separate
// columns, so the order of the sums depends on nothing else.
RECURRA_EXPORT void recurra_add_rows(int32_t threads, int64_t rows, int64_t width, int64_t stride,
                                     const int64_t* ids, const void* from, int32_t is_half,
                                     int64_t cleared, float* table) {
  using namespace recurra;
  if (is_half)
    add_rows(threads, rows, width, stride, ids, static_cast<const Half*>(from), cleared, table);
  else
    add_rows(threads, rows, width, stride, ids, static_cast<const float*>(from), cleared, table);
}

// to (columns, rows) = from' (rows, columns), plus bias (rows,) unless that is null.
RECURRA_EXPORT void recurra_transpose(int32_t threads, int64_t rows, int64_t columns,
                                      const float* from, const float* bias, float* to) {
  using namespace recurra;
  threads = thread_count(threads);
  run_parts(threads, [&](int index) {
    Range own = part((rows + kLanes - 1) / kLanes, index, threads);
    for (int64_t top = own.begin * kLanes; top < std::min(own.end * kLanes, rows); top += kLanes) {
      int height = int(std::min<int64_t>(kLanes, rows - top));
      const Vec shift = bias ? load(bias + top, height) : splat(0.0f);
      for (int64_t left = 0; left < columns; left += kLanes) {
        int width = int(std::min<int64_t>(kLanes, columns - left));
        Vec square[kLanes] = {};
        for (int r = 0; r < height; r++) square[r] = load(from + (top + r) * columns + left, width);
        transpose(square);
        for (int c = 0; c < width; c++)
          store(to + (left + c) * rows + top, square[c] + shift, height);
      }
    }
  });
}

// Returns whether `count` ids are all within [0, limit); other kernels do not check.
RECURRA_EXPORT int32_t recurra_all_below(int64_t count, const int64_t* ids, int64_t limit) {
  bool all = true;
  for (int64_t i = 0; i < count; i++) all &= uint64_t(ids[i]) < uint64_t(limit);
  return all;
}
