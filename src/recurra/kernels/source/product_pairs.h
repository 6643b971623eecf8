// Products of bfloat16 numbers, two at a time, accumulated in fp32. Part of `product.h`; `pairs.h`
// has the instructions.
#pragma once

#include "pairs.h"

#if defined(RECURRA_PAIRS)

namespace recurra {

// Two rows of the weight are interleaved, (k, n) with (k + 1, n); an odd last row with zeros.
struct Pairs {
  typedef Half Operand;
  static constexpr bool kCopiesOperand = true;

  static int64_t panel_size(int64_t depth) { return (depth + 1) / 2 * 2 * kPanel; }

  static void store_operand(Operand* to, Vec v, int count) { store_rounded(to, v, count); }

  static void pack(Layout weight, int64_t depth, int width, Operand* panel) {
    if (width < kPanel || depth % 2) std::fill(panel, panel + panel_size(depth), Half(0));
    if (weight.row == 1) {
      for (int left = 0; left < width; left += kLanes) {
        int columns = std::min(kLanes, width - left);
        const float* from = weight.from + left * weight.column;
        pack_columns(from, weight.column, columns, depth, panel + 2 * left);
      }
    } else {
      for (int64_t k = 0; k < depth; k += 2)
        for (int left = 0; left < width; left += kLanes) {
          int columns = std::min(kLanes, width - left);
          const float* from = weight.from + k * weight.row + left;
          Vec second = k + 1 < depth ? load(from + weight.row, columns) : splat(0.0f);
          store_halves(panel + k * kPanel + 2 * left, round_pairs(load(from, columns), second));
        }
    }
  }

  // As in Single. With an odd depth, the number after each row of `a` must be finite.
  static void multiply(int rows, int64_t depth, const Operand* a, int64_t lda, const Operand* panel,
                       float* c, int64_t ldc, bool add) {
    while (rows > 0) {
      int taken = std::min(rows, kTileRows);
      tile(taken, (depth + 1) / 2, a, lda, panel, c, ldc, add);
      rows -= taken, a += taken * lda, c += taken * ldc;
    }
  }

  static void pack_block(const Operand* from, int64_t stride, int64_t depth, int width,
                         Operand* block) {
    for (int64_t k = 0; k < depth; k += 2, block += 2 * kBlock) {
      const Half *first = from + k * stride, *second = first + stride;
      if (width == kBlock && k + 1 < depth) {
        for (int m = 0; m < kBlock; m += 2 * kLanes)
          store_pairs(block + 2 * m, load_halves(first + m), load_halves(second + m));
        continue;
      }
      for (int m = 0; m < width; m++) {
        block[2 * m] = first[m];
        block[2 * m + 1] = k + 1 < depth ? second[m] : 0;
      }
      std::fill(block + 2 * width, block + 2 * kBlock, Half(0));
    }
  }

  static void multiply_block(int64_t depth, const Operand* block, const Operand* panel, float* c,
                             int64_t ldc, bool add) {
    for (int r = 0; r < kBlock; r += kTileRows)
      tile_of<kTileRows, true>((depth + 1) / 2, block + 2 * r, 0, panel, c + r * ldc, ldc, add);
  }

  static void finish() {}

 protected:
  // Halves of two rows, interleaved.
  INLINE static void store_pairs(Half* to, HalfVec first, HalfVec second) {
    store_halves(to, interleave<false>(first, second));
    store_halves(to + 2 * kLanes, interleave<true>(first, second));
  }

 private:
  // Contiguous columns of the weight: kLanes pairs of each at a time are transposed.
  static void pack_columns(const float* from, int64_t stride, int columns, int64_t depth,
                           Half* to) {
    constexpr int kRowsAtOnce = 2 * kLanes;
    for (int64_t k = 0; k < depth; k += kRowsAtOnce) {
      const int rows = int(std::min<int64_t>(kRowsAtOnce, depth - k));
      Vec square[kLanes] = {};
      for (int n = 0; n < columns; n++) {
        const float* column = from + n * stride + k;
        Vec first = load(column, std::min(kLanes, rows));
        Vec second = rows > kLanes ? load(column + kLanes, rows - kLanes) : splat(0.0f);
        square[n] = (Vec)round_halves(first, second);
      }
      transpose(square);
      for (int pair = 0; pair < (rows + 1) / 2; pair++)
        store(reinterpret_cast<float*>(to + (k + 2 * pair) * kPanel), square[pair]);
    }
  }

  template <int kRows, bool kDown = false>
  static void tile_of(int64_t pairs, const Half* a, int64_t lda, const Half* panel, float* c,
                      int64_t ldc, bool add) {
    const int64_t stride = kDown ? 2 * kBlock : 2;
    constexpr int kChains = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
    Vec sums[kChains][kRows][2] = {};
    int64_t k = 0;
    for (; k + kChains <= pairs; k += kChains)
      for (int chain = 0; chain < kChains; chain++)
        accumulate<kRows>(sums[chain], a + (k + chain) * stride, kDown ? 2 : lda,
                          panel + 2 * (k + chain) * kPanel);
    for (; k < pairs; k++)
      accumulate<kRows>(sums[0], a + k * stride, kDown ? 2 : lda, panel + 2 * k * kPanel);
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < 2; v++) {
        float* to = c + r * ldc + v * kLanes;
        Vec total = sums[0][r][v];
        for (int chain = 1; chain < kChains; chain++) total += sums[chain][r][v];
        store(to, add ? total + load(to) : total);
      }
  }

  template <int kRows>
  INLINE static void accumulate(Vec (&sums)[kRows][2], const Half* a, int64_t lda,
                                const Half* b) {
    HalfVec left = load_halves(b), right = load_halves(b + kPanel);
    for (int r = 0; r < kRows; r++) {
      HalfVec x = splat_pair(a + r * lda);
      sums[r][0] = add_products(sums[r][0], x, left);
      sums[r][1] = add_products(sums[r][1], x, right);
    }
  }

  static void tile(int rows, int64_t pairs, const Half* a, int64_t lda, const Half* panel, float* c,
                   int64_t ldc, bool add) {
    switch (rows) {
      case 1: return tile_of<1>(pairs, a, lda, panel, c, ldc, add);
      case 2: return tile_of<2>(pairs, a, lda, panel, c, ldc, add);
      case 3: return tile_of<3>(pairs, a, lda, panel, c, ldc, add);
      case 4: return tile_of<4>(pairs, a, lda, panel, c, ldc, add);
      case 5: return tile_of<5>(pairs, a, lda, panel, c, ldc, add);
      case 6: return tile_of<6>(pairs, a, lda, panel, c, ldc, add);
      case 7: return tile_of<7>(pairs, a, lda, panel, c, ldc, add);
      case 8: return tile_of<8>(pairs, a, lda, panel, c, ldc, add);
    }
  }
};

}  // namespace recurra

#endif
