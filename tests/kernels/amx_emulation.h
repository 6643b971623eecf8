// The instructions of AMX-BF16 in plain C++, for tests on machines without them. Included before
// all other sources with -include and -DRECURRA_EMULATE_AMX.
//
// Semantics and checks follow the Intel 64 and IA-32 Architectures Software Developer's Manual:
// palette 1 has eight tiles of at most 16 rows of 64 bytes; an instruction on a tile that is not
// configured, or on tiles whose sizes do not match, is an error, which ends the process.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace amx_emulation {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct State {
  bool is_configured = false;
  int rows[kTiles] = {}, row_bytes[kTiles] = {};
  alignas(64) uint8_t data[kTiles][kRows][kRowBytes] = {};
};

inline State& state() {
  static thread_local State of_thread;
  return of_thread;
}

inline void require(bool condition, const char* rule) {
  if (condition) return;
  std::fprintf(stderr, "AMX emulation: %s\n", rule);
  std::abort();
}

inline void load_config(const void* from) {
  const uint8_t* bytes = static_cast<const uint8_t*>(from);
  require(bytes[0] == 1, "the palette must be 1");
  for (int i = 2; i < 16; i++) require(bytes[i] == 0, "reserved bytes must be zero");
  State& s = state();
  s = State();
  s.is_configured = true;
  for (int i = 0; i < 16; i++) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
    const int rows = bytes[48 + i];
    if (i >= kTiles) {
      require(row_bytes == 0 && rows == 0, "there are eight tiles");
      continue;
    }
    require(row_bytes <= kRowBytes && rows <= kRows, "a tile has at most 16 rows of 64 bytes");
    require((row_bytes == 0) == (rows == 0), "a tile has rows and columns, or neither");
    s.rows[i] = rows, s.row_bytes[i] = row_bytes;
  }
}

inline void release() { state() = State(); }

inline void require_tile(int tile) {
  require(state().is_configured && state().rows[tile] > 0, "the tile is not configured");
}

inline void zero(int tile) {
  require_tile(tile);
  std::memset(state().data[tile], 0, sizeof state().data[tile]);
}

inline void load(int tile, const void* from, int64_t stride) {
  zero(tile);
  State& s = state();
  for (int r = 0; r < s.rows[tile]; r++)
    std::memcpy(s.data[tile][r], static_cast<const char*>(from) + r * stride, s.row_bytes[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
  require_tile(tile);
  State& s = state();
  for (int r = 0; r < s.rows[tile]; r++)
    std::memcpy(static_cast<char*>(to) + r * stride, s.data[tile][r], s.row_bytes[tile]);
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f * x : x; }

inline float half(const uint8_t* row, int index) {
  uint16_t bits;
  std::memcpy(&bits, row + 2 * index, sizeof bits);
  uint32_t word = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return flushed(x);
}

// The products of the even and of the odd numbers are summed separately, then added.
inline void multiply(int sums, int left, int right) {
  for (int tile : {sums, left, right}) require_tile(tile);
  require(sums != left && sums != right && left != right, "the tiles must be different");
  State& s = state();
  require(s.rows[sums] == s.rows[left], "the sums must have the rows of the left tile");
  require(s.row_bytes[sums] == s.row_bytes[right], "the sums must have the columns of the right");
  require(s.row_bytes[left] == 4 * s.rows[right], "the inner sizes must be equal");
  for (int m = 0; m < s.rows[sums]; m++)
    for (int n = 0; n < s.row_bytes[sums] / 4; n++) {
      float parts[2] = {};
      for (int k = 0; k < s.rows[right]; k++)
        for (int i = 0; i < 2; i++)
          parts[i] = flushed(std::fma(half(s.data[left][m], 2 * k + i),
                                      half(s.data[right][k], 2 * n + i), parts[i]));
      float sum;
      uint8_t* place = s.data[sums][m] + 4 * n;
      std::memcpy(&sum, place, sizeof sum);
      sum = flushed(flushed(sum) + flushed(parts[0] + parts[1]));
      std::memcpy(place, &sum, sizeof sum);
    }
}

}  // namespace amx_emulation

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) amx_emulation::load_config(from)
#define _tile_release() amx_emulation::release()
#define _tile_zero(tile) amx_emulation::zero(tile)
#define _tile_loadd(tile, from, stride) amx_emulation::load(tile, from, stride)
#define _tile_stored(tile, to, stride) amx_emulation::store(tile, to, stride)
#define _tile_dpbf16ps(sums, left, right) amx_emulation::multiply(sums, left, right)
