// Products of bfloat16 numbers in the tile registers of AMX. Part of `product.h`.
//
// A tile has up to 16 rows of 64 bytes. The instruction multiplies a tile of the rows, 16 x 32
// numbers, with a tile of the panel, 16 pairs x 16 columns: the layout of `Pairs`. There are eight
// tiles: four sums, two of the rows and two of the panel.
#pragma once

#if defined(__AVX512BF16__) && \
    ((defined(__AMX_TILE__) && defined(__AMX_BF16__)) || defined(RECURRA_EMULATE_AMX))
#define RECURRA_TILES 1

namespace recurra {

struct Tiles : Pairs {
  static void multiply(int rows, int64_t depth, const Operand* a, int64_t lda, const Operand* panel,
                       float* c, int64_t ldc, bool add) {
    Source source{a, lda, kTileDepth, lda, depth};
    while (rows > 0) {
      const int taken = rows >= 2 * kRows ? 2 * kRows : std::min(rows, kRows);
      taken > kRows ? two_tiles(source, panel, c, ldc, add)
                    : one_tile(taken, source, panel, c, ldc, add);
      rows -= taken, source.from += taken * lda, c += taken * ldc;
    }
  }

  // The columns of a block become rows: kTileDepth numbers of each, one after the other, then the
  // next kTileDepth of each.
  static void pack_block(const Operand* from, int64_t stride, int64_t depth, int width,
                         Operand* block) {
    const __mmask32 lanes = __mmask32(~uint32_t(0) >> (kBlock - width));
    for (int64_t k = 0; k < depth; k += kTileDepth, block += kBlock * kTileDepth) {
      const int numbers = int(std::min<int64_t>(kTileDepth, depth - k));
      alignas(64) Half pairs[kTileDepth / 2][2 * kBlock] = {};
      for (int i = 0; i < numbers; i += 2, from += 2 * stride) {
        HalfVec second = {};
        if (i + 1 < numbers) second = (HalfVec)_mm512_maskz_loadu_epi16(lanes, from + stride);
        store_pairs(pairs[i / 2], (HalfVec)_mm512_maskz_loadu_epi16(lanes, from), second);
      }
      const int words = (numbers + 1) / 2;
      for (int half = 0; half < 2; half++) {
        Vec square[kLanes];
        for (int i = 0; i < kLanes; i++)
          square[i] = load(reinterpret_cast<const float*>(pairs[i]) + half * kLanes);
        transpose(square);
        for (int m = 0; m < kLanes; m++)
          store(reinterpret_cast<float*>(block) + (half * kLanes + m) * words, square[m], words);
      }
    }
  }

  static void multiply_block(int64_t depth, const Operand* block, const Operand* panel, float* c,
                             int64_t ldc, bool add) {
    const int64_t remainder = depth % kTileDepth;
    two_tiles({block, kTileDepth, kBlock * kTileDepth, remainder + remainder % 2, depth}, panel, c,
              ldc, add);
  }

  // Leaves the tile registers empty, as the operating system expects of a thread at rest. Each
  // thread calls it after its products.
  static void finish() {
    if (configured_rows() == 0) return;
    _tile_release();
    configured_rows() = 0;
  }

 private:
  static constexpr int kRows = 16, kTileDepth = 32;

  // The rows of a product: numbers `k` to `k + kTileDepth` of row r are at
  // from + k / kTileDepth * step + r * stride. The rows of the remainder are `last_stride` apart.
  struct Source {
    const Half* from;
    int64_t stride, step, last_stride, depth;

    int64_t whole_steps() const { return depth / kTileDepth; }
    bool has_remainder() const { return depth % kTileDepth > 0; }
  };

  // The operand of LDTILECFG.
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  // The rows of this thread's tiles; 0 if they are not configured.
  static int& configured_rows() {
    static thread_local int rows = 0;
    return rows;
  }

  static void configure(int rows) {
    if (configured_rows() == rows) return;
    Configuration configuration;
    for (int tile = 0; tile < 8; tile++) {
      configuration.row_bytes[tile] = 64;
      configuration.rows[tile] = uint8_t(tile < 6 ? rows : kRows);
    }
    _tile_loadconfig(&configuration);
    configured_rows() = rows;
  }

  // The end of a depth that is not a multiple of kTileDepth: the last numbers of each row, and the
  // last rows of the panel, padded with zeros.
  struct Remainder {
    alignas(64) Half a[2 * kRows * kTileDepth] = {};
    alignas(64) Half panel[kTileDepth * kPanel] = {};

    Remainder(int rows, const Source& source, const Half* from_panel) {
      const int64_t steps = source.whole_steps(), numbers = source.depth % kTileDepth;
      const Half* from = source.from + steps * source.step;
      for (int r = 0; r < rows; r++)
        std::copy_n(from + r * source.last_stride, numbers, a + r * kTileDepth);
      std::copy_n(from_panel + steps * kTileDepth * kPanel, (numbers + 1) / 2 * 2 * kPanel, panel);
    }
  };

  static void load_panel(const Half* panel) {
    _tile_loadd(6, panel, 4 * kPanel);
    _tile_loadd(7, panel + 2 * kLanes, 4 * kPanel);
  }

  // Up to 16 rows. The latency of TDPBF16PS is several times the interval at which it can be
  // issued, so even and odd steps accumulate in separate tiles.
  static void one_tile(int rows, const Source& source, const Half* panel, float* c, int64_t ldc,
                       bool add) {
    configure(rows);
    start_sums(c, ldc, add);
    _tile_zero(2);
    _tile_zero(3);
    const int64_t steps = source.whole_steps();
    for (int64_t s = 0; s < steps; s++) {
      const Half* from = source.from + s * source.step;
      load_panel(panel + s * kTileDepth * kPanel);
      if (s % 2 == 0) {
        _tile_loadd(4, from, 2 * source.stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      } else {
        _tile_loadd(5, from, 2 * source.stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    if (source.has_remainder()) {
      const Remainder remainder(rows, source, panel);
      load_panel(remainder.panel);
      _tile_loadd(4, remainder.a, 2 * kTileDepth);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c, 4 * ldc);
    _tile_stored(1, c + kLanes, 4 * ldc);
    if (steps > 1) add_second_sums(rows, c, ldc);
  }

  static void start_sums(const float* c, int64_t ldc, bool add) {
    if (add) {
      _tile_loadd(0, c, 4 * ldc);
      _tile_loadd(1, c + kLanes, 4 * ldc);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
  }

  static void add_second_sums(int rows, float* c, int64_t ldc) {
    alignas(64) float second[kRows * kPanel];
    _tile_stored(2, second, 4 * kPanel);
    _tile_stored(3, second + kLanes, 4 * kPanel);
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < kPanel; v += kLanes)
        store(c + r * ldc + v, load(c + r * ldc + v) + load(second + r * kPanel + v));
  }

  // 32 rows.
  static void two_tiles(const Source& source, const Half* panel, float* c, int64_t ldc, bool add) {
    configure(kRows);
    float* lower = c + kRows * ldc;
    start_sums(c, ldc, add);
    if (add) {
      _tile_loadd(2, lower, 4 * ldc);
      _tile_loadd(3, lower + kLanes, 4 * ldc);
    } else {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t s = 0; s < source.whole_steps(); s++)
      step_of_two(source.from + s * source.step, source.stride, panel + s * kTileDepth * kPanel);
    if (source.has_remainder()) {
      const Remainder remainder(2 * kRows, source, panel);
      step_of_two(remainder.a, kTileDepth, remainder.panel);
    }
    _tile_stored(0, c, 4 * ldc);
    _tile_stored(1, c + kLanes, 4 * ldc);
    _tile_stored(2, lower, 4 * ldc);
    _tile_stored(3, lower + kLanes, 4 * ldc);
  }

  INLINE static void step_of_two(const Half* from, int64_t stride, const Half* panel) {
    _tile_loadd(4, from, 2 * stride);
    load_panel(panel);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, from + kRows * stride, 2 * stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace recurra

#endif
