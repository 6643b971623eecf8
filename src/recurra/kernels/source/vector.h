// One vector of floats, as wide as the machine compiled for, and the functions of it.
//
// GCC's and clang's vector extensions carry the arithmetic, so that the same source serves AVX-512,
// AVX2, SSE and NEON. NaN passes through every function: a damaged weight must show in the loss.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// For functions in the innermost loops, where a call would cost as much as the work.
#define INLINE inline __attribute__((always_inline))
// Prevents inlining, so that the function does not affect the register allocation of its caller.
#define NO_INLINE __attribute__((noinline))

namespace recurra {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t WordVec __attribute__((vector_size(kLanes * 4)));

INLINE Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// Partial vectors use masks, because `memcpy` with a length that is unknown at compile time is a
// function call. `count` >= 0.
#if defined(__AVX512F__)
INLINE __mmask16 first_lanes(int count) { return __mmask16((1u << count) - 1); }
#elif defined(__AVX__)
INLINE __m256i first_lanes(int count) {
  alignas(64) static constexpr int32_t kMasks[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  __m256i mask;
  std::memcpy(&mask, kMasks + kLanes - count, sizeof mask);
  return mask;
}
#endif

// The first `count` lanes; the others are zero.
INLINE Vec load(const float* from, int count) {
  if (count == kLanes) return load(from);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(first_lanes(count), from);
#elif defined(__AVX__)
  return (Vec)_mm256_maskload_ps(from, first_lanes(count));
#else
  Vec v = {};
  std::memcpy(&v, from, count * sizeof(float));
  return v;
#endif
}

INLINE void store(float* to, Vec v, int count) {
  if (count == kLanes) return store(to, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)v);
#elif defined(__AVX__)
  _mm256_maskstore_ps(to, first_lanes(count), (__m256)v);
#else
  std::memcpy(to, &v, count * sizeof(float));
#endif
}

INLINE Vec splat(float x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(x);
#elif defined(__AVX__)
  return (Vec)_mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; i++) total += v[i];
  return total;
}

// The lower (or upper) halves of two vectors, interleaved lane by lane.
template <bool kUpper>
INLINE Vec interleave(Vec a, Vec b) {
#if defined(__clang__)
  constexpr int h = kUpper ? kLanes / 2 : 0, o = kLanes + h;
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, h, o, h + 1, o + 1, h + 2, o + 2, h + 3, o + 3, h + 4, o + 4,
                                 h + 5, o + 5, h + 6, o + 6, h + 7, o + 7);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, h, o, h + 1, o + 1, h + 2, o + 2, h + 3, o + 3);
#else
  return __builtin_shufflevector(a, b, h, o, h + 1, o + 1);
#endif
#else
  IntVec lanes;
  for (int i = 0; i < kLanes; i++) lanes[i] = i / 2 + i % 2 * kLanes + (kUpper ? kLanes / 2 : 0);
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Transposes a square matrix in log2(kLanes) rounds, each of which interleaves the upper half of
// the rows with the lower half.
INLINE void transpose(Vec (&rows)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    Vec turned[kLanes];
    for (int i = 0; i < kLanes / 2; i++) {
      turned[2 * i] = interleave<false>(rows[i], rows[i + kLanes / 2]);
      turned[2 * i + 1] = interleave<true>(rows[i], rows[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; i++) rows[i] = turned[i];
  }
}

#if defined(__AVX512F__)
// The instructions return their second operand if one of the two is NaN.
INLINE Vec at_least(Vec v, Vec low) { return (Vec)_mm512_max_ps((__m512)low, (__m512)v); }
INLINE Vec at_most(Vec v, Vec high) { return (Vec)_mm512_min_ps((__m512)high, (__m512)v); }
INLINE Vec nearest(Vec v) { return (Vec)_mm512_roundscale_ps((__m512)v, 8); }
INLINE Vec times_power_of_two(Vec v, Vec n) { return (Vec)_mm512_scalef_ps((__m512)v, (__m512)n); }
// An estimate of 14 bits and one step of Newton's method, in half the time of a division.
INLINE Vec reciprocal(Vec v) {
  Vec estimate = (Vec)_mm512_rcp14_ps((__m512)v);
  return estimate + estimate * (splat(1.0f) - v * estimate);
}
#else
INLINE Vec at_least(Vec v, Vec low) { return v < low ? low : v; }
INLINE Vec at_most(Vec v, Vec high) { return v > high ? high : v; }
// |v| < 2^22: adding and taking away 1.5 * 2^23 rounds.
INLINE Vec nearest(Vec v) { return (v + splat(12582912.0f)) - splat(12582912.0f); }
INLINE Vec times_power_of_two(Vec v, Vec n) {
  IntVec shifted = (IntVec)(n + splat(12582912.0f)) - (IntVec)splat(12582912.0f);
  return v * (Vec)((shifted + 127) << 23);
}
INLINE Vec reciprocal(Vec v) { return splat(1.0f) / v; }
#endif

// e^x = 2^n (1 + minus_one), where |minus_one| is below 0.42.
struct Exponential {
  Vec n, minus_one;
};

// x within [-87, 88].
INLINE Exponential exponential(Vec x) {
  Vec n = nearest(x * splat(1.44269504f));
  // ln(2) in two parts, of which n times the first is exact.
  Vec r = x - n * splat(0.693145752f);
  r = r - n * splat(1.42860677e-6f);
  Vec p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  return {n, p * r * r + r};
}

// e^x, zero below -87, where fp32 ends.
INLINE Vec exp(Vec x) {
  Exponential e = exponential(at_least(at_most(x, splat(88.0f)), splat(-87.0f)));
  Vec power = times_power_of_two(splat(1.0f) + e.minus_one, e.n);
  return x < splat(-87.0f) ? splat(0.0f) : power;
}

// tanh(x) = m / (m + 2) with m = e^2x - 1: exact both around zero and near one, where the
// derivative 1 - tanh(x)^2 depends on the last bits.
INLINE Vec tanh(Vec x) {
  Exponential e = exponential(splat(2.0f) * at_least(at_most(x, splat(10.0f)), splat(-10.0f)));
  Vec power = times_power_of_two(splat(1.0f), e.n);
  Vec m = power * e.minus_one + (power - splat(1.0f));
  return m * reciprocal(m + splat(2.0f));
}

INLINE Vec sigmoid(Vec x) {
  Exponential e = exponential(at_least(at_most(-x, splat(88.0f)), splat(-87.0f)));
  Vec power = times_power_of_two(splat(1.0f), e.n);
  return reciprocal(power * e.minus_one + (power + splat(1.0f)));
}

INLINE Vec relu(Vec x) { return at_least(x, splat(0.0f)); }

// A bfloat16 is the upper half of a float.
typedef uint16_t Half;

// To the nearest bfloat16, ties to even; a NaN stays one.
INLINE Vec round_to_bfloat16(Vec v) {
  WordVec word = (WordVec)v;
  WordVec rounded = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  return v == v ? (Vec)rounded : v;
}

}  // namespace recurra
