// One vector of pairs of bfloat16 numbers, as wide as `Vec`, and the instructions for it: those of
// AVX-512 BF16, or those of the extension BF16 of ARM. RECURRA_PAIRS says that this build has them.
#pragma once

#include "vector.h"

#if defined(__AVX512BF16__) || \
    (defined(__aarch64__) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))
#define RECURRA_PAIRS 1

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace recurra {

typedef Half HalfVec __attribute__((vector_size(2 * kLanes * sizeof(Half))));

INLINE HalfVec load_halves(const Half* from) {
  HalfVec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

INLINE void store_halves(Half* to, HalfVec v) { std::memcpy(to, &v, sizeof v); }

#if defined(__AVX512BF16__)

INLINE void store_rounded(Half* to, Vec v, int count) {
  __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)v);
  if (count == kLanes)
    std::memcpy(to, &halves, sizeof halves);
  else
    _mm256_mask_storeu_epi16(to, first_lanes(count), halves);
}

// Rounds two vectors to bf16: the values of `first`, then those of `second`.
INLINE HalfVec round_halves(Vec first, Vec second) {
  return (HalfVec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// Interleaves two vectors of bf16 numbers: `first` is in the lower 16 bits of each 32-bit word,
// which come first in memory.
INLINE HalfVec join(__m256i first, __m256i second) {
  __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16);
  return (HalfVec)_mm512_or_si512(_mm512_cvtepu16_epi32(first), high);
}

// Rounds two vectors to bf16 and interleaves them.
INLINE HalfVec round_pairs(Vec first, Vec second) {
  return join((__m256i)_mm512_cvtneps_pbh((__m512)first),
              (__m256i)_mm512_cvtneps_pbh((__m512)second));
}

// Interleaves the values in the lower (or upper) half of two vectors.
template <bool kUpper>
INLINE HalfVec interleave(HalfVec first, HalfVec second) {
  constexpr int kPart = kUpper ? 1 : 0;
  return join(_mm512_extracti64x4_epi64((__m512i)first, kPart),
              _mm512_extracti64x4_epi64((__m512i)second, kPart));
}

INLINE HalfVec splat_pair(const Half* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return (HalfVec)_mm512_set1_epi32(pair);
}

// Adds to each fp32 lane of `sum` the dot product of its pair in `a` and its pair in `b`.
INLINE Vec add_products(Vec sum, HalfVec a, HalfVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

#else

INLINE void store_rounded(Half* to, Vec v, int count) {
  uint16x4_t halves = (uint16x4_t)vcvt_bf16_f32((float32x4_t)v);
  if (count == kLanes)
    std::memcpy(to, &halves, sizeof halves);
  else
    for (int i = 0; i < count; i++) to[i] = halves[i];
}

INLINE HalfVec round_halves(Vec first, Vec second) {
  bfloat16x8_t lower = vcvtq_low_bf16_f32((float32x4_t)first);
  return (HalfVec)vcvtq_high_bf16_f32(lower, (float32x4_t)second);
}

INLINE HalfVec round_pairs(Vec first, Vec second) {
  uint16x8_t low = (uint16x8_t)vcvtq_low_bf16_f32((float32x4_t)first);
  return (HalfVec)vzip1q_u16(low, (uint16x8_t)vcvtq_low_bf16_f32((float32x4_t)second));
}

template <bool kUpper>
INLINE HalfVec interleave(HalfVec first, HalfVec second) {
  uint16x8_t low = (uint16x8_t)first, high = (uint16x8_t)second;
  return (HalfVec)(kUpper ? vzip2q_u16(low, high) : vzip1q_u16(low, high));
}

INLINE HalfVec splat_pair(const Half* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return (HalfVec)vdupq_n_u32(pair);
}

// BFDOT. BFMMLA does twice the work, but multiplies two rows by two columns, four numbers of each at
// a time: it would need its own layout of panels and sums, and a single row would gain nothing.
INLINE Vec add_products(Vec sum, HalfVec a, HalfVec b) {
  return (Vec)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}

#endif

}  // namespace recurra

#endif
