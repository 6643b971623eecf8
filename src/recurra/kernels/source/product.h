// Products of a few rows with a weight that was packed in advance.
//
// A packed weight is a row of panels. A panel holds kPanel columns, row after row, so that the
// innermost loop reads it from end to end. The rows are not packed. The product of a time step is
// small (for example 16 x 512 by 512 x 512), so the inner dimension is not split into blocks: a
// panel streams through the L2 cache once for every tile of rows.
//
// There are four matrix-product kernels (`Kind`), each a class of static functions with the same
// names:
//   Single     fp32;
//   Rounded    fp32 arithmetic on operands rounded to bfloat16, for machines without BF16 units;
//   Pairs      bfloat16 operands, two at a time, accumulated in fp32 (AVX-512 BF16 or ARM BF16);
//   Tiles      the same with 16 rows at a time in the tile registers of AMX.
// The last two have separate headers.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "range.h"
#include "vector.h"

namespace recurra {

constexpr int kPanel = 2 * kLanes;                   // columns of a panel
constexpr int kTileRows = kRegisters == 32 ? 8 : 4;  // rows of a tile
constexpr int kBlock = 32;                           // columns of a block, see `multiply_block`

inline int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// The layout of a weight: entry (k, n) at from[k * row + n * column], where one of the
// two is 1.
struct Layout {
  const float* from;
  int64_t row, column;
};

struct Single {
  typedef float Operand;
  static constexpr bool kCopiesOperand = false;

  static int64_t panel_size(int64_t depth) { return depth * kPanel; }

  INLINE static Vec convert(Vec v) { return v; }

  // `width` <= kPanel columns; the rest of the panel is zero.
  static void pack(Layout weight, int64_t depth, int width, Operand* panel) {
    pack_panel<Single>(weight, depth, width, panel);
  }

  template <class Kind>
  static void pack_panel(Layout weight, int64_t depth, int width, float* panel) {
    if (width < kPanel) std::fill(panel, panel + panel_size(depth), 0.0f);
    // Either layout of the weight is read in the order of its memory.
    if (weight.row == 1) {
      for (int left = 0; left < width; left += kLanes)
        for (int64_t top = 0; top < depth; top += kLanes) {
          int columns = std::min(kLanes, width - left);
          int rows = int(std::min<int64_t>(kLanes, depth - top));
          Vec square[kLanes] = {};
          for (int n = 0; n < columns; n++)
            square[n] = load(weight.from + top + (left + n) * weight.column, rows);
          transpose(square);
          for (int k = 0; k < rows; k++)
            store(panel + (top + k) * kPanel + left, Kind::convert(square[k]));
        }
    } else {
      for (int64_t k = 0; k < depth; k++)
        for (int left = 0; left < width; left += kLanes) {
          int columns = std::min(kLanes, width - left);
          const float* from = weight.from + k * weight.row + left;
          store(panel + k * kPanel + left, Kind::convert(load(from, columns)));
        }
    }
  }

  // c = a panel (+ c): a is (rows, depth) with rows `lda` apart, c (rows, kPanel) with `ldc`.
  static void multiply(int rows, int64_t depth, const Operand* a, int64_t lda, const Operand* panel,
                       float* c, int64_t ldc, bool add) {
    while (rows > 0) {
      int taken = std::min(rows, kTileRows);
      tile(taken, depth, a, lda, panel, c, ldc, add);
      rows -= taken, a += taken * lda, c += taken * ldc;
    }
  }

  // `width` <= kBlock columns of (depth, ...) numbers, row after row; the rest of a row is zero.
  static void pack_block(const Operand* from, int64_t stride, int64_t depth, int width,
                         Operand* block) {
    for (int64_t k = 0; k < depth; k++, block += kBlock, from += stride) {
      if (width == kBlock) {
        for (int m = 0; m < kBlock; m += kLanes) store(block + m, load(from + m));
      } else {
        std::copy_n(from, width, block);
        std::fill_n(block + width, kBlock - width, 0.0f);
      }
    }
  }

  // c = block' panel (+ c), kBlock rows.
  static void multiply_block(int64_t depth, const Operand* block, const Operand* panel, float* c,
                             int64_t ldc, bool add) {
    for (int r = 0; r < kBlock; r += kTileRows)
      tile_of<kTileRows, true>(depth, block + r, 0, panel, c + r * ldc, ldc, add);
  }

  static void finish() {}

 private:
  template <int kRows, bool kDown = false>
  static void tile_of(int64_t depth, const float* a, int64_t lda, const float* panel, float* c,
                      int64_t ldc, bool add) {
    const int64_t stride = kDown ? kBlock : 1;
    // A single row has too few sums to hide the latency of an addition: take more at a time.
    constexpr int kChains = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
    Vec sums[kChains][kRows][2] = {};
    int64_t k = 0;
    for (; k + kChains <= depth; k += kChains)
      for (int chain = 0; chain < kChains; chain++)
        accumulate<kRows>(sums[chain], a + (k + chain) * stride, kDown ? 1 : lda,
                          panel + (k + chain) * kPanel);
    for (; k < depth; k++)
      accumulate<kRows>(sums[0], a + k * stride, kDown ? 1 : lda, panel + k * kPanel);
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < 2; v++) {
        float* to = c + r * ldc + v * kLanes;
        Vec total = sums[0][r][v];
        for (int chain = 1; chain < kChains; chain++) total += sums[chain][r][v];
        store(to, add ? total + load(to) : total);
      }
  }

  template <int kRows>
  INLINE static void accumulate(Vec (&sums)[kRows][2], const float* a, int64_t lda,
                                const float* b) {
    Vec left = load(b), right = load(b + kLanes);
    for (int r = 0; r < kRows; r++) {
      Vec x = splat(a[r * lda]);
      sums[r][0] += x * left;
      sums[r][1] += x * right;
    }
  }

  static void tile(int rows, int64_t depth, const float* a, int64_t lda, const float* panel,
                   float* c, int64_t ldc, bool add) {
    switch (rows) {
      case 1: return tile_of<1>(depth, a, lda, panel, c, ldc, add);
      case 2: return tile_of<2>(depth, a, lda, panel, c, ldc, add);
      case 3: return tile_of<3>(depth, a, lda, panel, c, ldc, add);
      case 4: return tile_of<4>(depth, a, lda, panel, c, ldc, add);
#if defined(__AVX512F__) || defined(__aarch64__)
      case 5: return tile_of<5>(depth, a, lda, panel, c, ldc, add);
      case 6: return tile_of<6>(depth, a, lda, panel, c, ldc, add);
      case 7: return tile_of<7>(depth, a, lda, panel, c, ldc, add);
      case 8: return tile_of<8>(depth, a, lda, panel, c, ldc, add);
#endif
    }
  }
};

struct Rounded : Single {
  static constexpr bool kCopiesOperand = true;

  INLINE static Vec convert(Vec v) { return round_to_bfloat16(v); }

  static void pack(Layout weight, int64_t depth, int width, Operand* panel) {
    pack_panel<Rounded>(weight, depth, width, panel);
  }

  static void store_operand(Operand* to, Vec v, int count) {
    store(to, round_to_bfloat16(v), count);
  }
};

}  // namespace recurra

#include "product_pairs.h"
#include "product_tiles.h"

namespace recurra {

// Calls `work` with the class of a matrix-product kernel, which must be one of those that
// `recurra_has_kind` reports.
template <class Work>
void with_product(int32_t kind, Work work) {
  switch (kind) {
    case kSingle: return work(Single{});
    case kRounded: return work(Rounded{});
#if defined(RECURRA_PAIRS)
    case kPairs: return work(Pairs{});
#endif
#if defined(RECURRA_TILES)
    case kTiles: return work(Tiles{});
#endif
  }
}

// Writes rows of fp32 numbers as operands, each followed by a zero if its length is odd.
template <class P>
void round_rows(const float* from, int64_t stride, int rows, int64_t depth,
                typename P::Operand* to) {
  if constexpr (P::kCopiesOperand) {
    for (int r = 0; r < rows; r++, from += stride, to += depth + depth % 2) {
      for (int64_t k = 0; k < depth; k += kLanes) {
        int count = int(std::min<int64_t>(kLanes, depth - k));
        P::store_operand(to + k, load(from + k, count), count);
      }
      if (depth % 2) to[depth] = 0;
    }
  }
}

// A weight (gates * units, depth), packed in panels of units, one for each gate.
template <class P>
struct PackedWeight {
  const float* weight;
  int64_t gates, units, depth;
  typename P::Operand* packed;

  int64_t num_panels() const { return panels(units) * gates; }

  typename P::Operand* panel(int64_t panel, int64_t gate = 0) const {
    return packed + (panel * gates + gate) * P::panel_size(depth);
  }

  void pack(int64_t index) const {
    int64_t first = index / gates * kPanel, gate = index % gates;
    int width = int(std::min<int64_t>(kPanel, units - first));
    Layout layout{weight + (gate * units + first) * depth, 1, depth};
    P::pack(layout, depth, width, panel(index / gates, gate));
  }
};

// This thread's part of the panels.
template <class P>
void pack_part(const PackedWeight<P>& weight, int thread, int threads) {
  Range own = part(weight.num_panels(), thread, threads);
  for (int64_t index = own.begin; index < own.end; index++) weight.pack(index);
}

}  // namespace recurra
