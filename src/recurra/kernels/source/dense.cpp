// Products of all time steps at once: the contribution of a layer's inputs to its gates, and the
// gradient of the inputs.
#include "kernels.h"
#include "pool.h"
#include "product.h"

namespace recurra {
namespace {

constexpr int kChunk = 2 * kTileRows;
constexpr int64_t kRowsAtOnce = 128;  // that stay in the L2 cache while the panels go by

template <class P>
void multiply_chunk(const DenseProduct& d, const typename P::Operand* a, int64_t lda, int rows,
                    const typename P::Operand* panel, int64_t column, float* out) {
  alignas(64) float product[kChunk * kPanel];
  P::multiply(rows, d.depth, a, lda, panel, product, kPanel, false);
  for (int v = 0; v < kPanel && column + v < d.n; v += kLanes) {
    int count = int(std::min<int64_t>(kLanes, d.n - column - v));
    const Vec bias = d.bias ? load(d.bias + column + v, count) : splat(0.0f);
    for (int r = 0; r < rows; r++)
      store(out + r * d.n + v, load(product + r * kPanel + v) + bias, count);
  }
}

template <class P>
void multiply(const DenseProduct& d) {
  typedef typename P::Operand Operand;
  auto* packed = static_cast<Operand*>(d.packed);
  const int64_t size = P::panel_size(d.depth), padded = d.depth + d.depth % 2;
  const bool rounds = P::kCopiesOperand && !d.is_operand;
  const int threads = thread_count(d.threads);
  auto pack = [&](int, int index, int64_t) {
    Range own = part(panels(d.n), index, threads);
    for (int64_t p = own.begin; p < own.end; p++) {
      int width = int(std::min<int64_t>(kPanel, d.n - p * kPanel));
      P::pack({d.weight + p * kPanel * d.weight_column, d.weight_row, d.weight_column}, d.depth,
              width, packed + p * size);
    }
  };
  auto multiply_rows = [&](int, int index, int64_t) {
    Operand* rounded = packed + panels(d.n) * size + index * kRowsAtOnce * padded;
    Range rows = part(d.rows, index, threads);
    for (int64_t first = rows.begin; first < rows.end; first += kRowsAtOnce) {
      int64_t count = std::min(kRowsAtOnce, rows.end - first);
      const Operand* a = static_cast<const Operand*>(d.a) + first * d.lda;
      if (rounds) {
        const float* from = static_cast<const float*>(d.a) + first * d.lda;
        round_rows<P>(from, d.lda, int(count), d.depth, rounded);
        a = rounded;
      }
      const int64_t lda = rounds ? padded : d.lda;
      for (int64_t p = 0; p < panels(d.n); p++)
        for (int64_t r = 0; r < count; r += kChunk)
          multiply_chunk<P>(d, a + r * lda, lda, int(std::min<int64_t>(kChunk, count - r)),
                            packed + p * size, p * kPanel, d.out + (first + r) * d.n + p * kPanel);
    }
    P::finish();
  };
  const Grid grid{1, threads, 1};
  run_stages(threads, stage(grid, pack), stage(grid, multiply_rows));
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_multiply(const recurra::DenseProduct* product) {
  using namespace recurra;
  with_product(product->kind, [&](auto kind) { multiply<decltype(kind)>(*product); });
}

// Numbers in `packed`.
RECURRA_EXPORT int64_t recurra_dense_numbers(int64_t threads, int64_t depth, int64_t n) {
  using namespace recurra;
  int64_t rows = panels(n) * kPanel + thread_count(threads) * kRowsAtOnce;
  return (depth + depth % 2) * rows;
}

RECURRA_EXPORT int64_t recurra_dense_product_bytes() { return sizeof(recurra::DenseProduct); }
