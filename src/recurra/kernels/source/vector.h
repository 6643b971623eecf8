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

// For what stands in the innermost loops, where a call would cost as much as the work.
#define INLINE inline __attribute__((always_inline))

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

// The first `count` lanes; the others are zero.
INLINE Vec load(const float* from, int count) {
  if (count == kLanes) return load(from);
  Vec v = {};
  std::memcpy(&v, from, count * sizeof(float));
  return v;
}

INLINE void store(float* to, Vec v, int count) {
  if (count == kLanes) return store(to, v);
  std::memcpy(to, &v, count * sizeof(float));
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

INLINE Vec at_least(Vec v, Vec low) { return v < low ? low : v; }
INLINE Vec at_most(Vec v, Vec high) { return v > high ? high : v; }

// e^r - 1 for |r| <= ln(2) / 2, and the power of two that e^x has beside it: e^x = power * (1 + it).
struct Exponential {
  Vec power, minus_one;
};

// x within [-87, 88].
INLINE Exponential exponential(Vec x) {
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number n of ln(2).
  const Vec rounder = splat(12582912.0f);
  Vec shifted = x * splat(1.44269504f) + rounder;
  Vec n = shifted - rounder;
  // ln(2) in two parts, of which n times the first is exact.
  Vec r = x - n * splat(0.693145752f);
  r = r - n * splat(1.42860677e-6f);
  Vec p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r * r + r;
  Vec power = (Vec)(((IntVec)shifted - (IntVec)rounder + 127) << 23);
  return {power, p};
}

// e^x, zero below -87, where fp32 ends.
INLINE Vec exp(Vec x) {
  Exponential e = exponential(at_least(at_most(x, splat(88.0f)), splat(-87.0f)));
  return x < splat(-87.0f) ? splat(0.0f) : e.power * e.minus_one + e.power;
}

// tanh(x) = m / (m + 2) with m = e^2x - 1: as exact around zero as where it nears one, and there it
// counts, for the derivative is what is left to one.
INLINE Vec tanh(Vec x) {
  Exponential e = exponential(splat(2.0f) * at_least(at_most(x, splat(10.0f)), splat(-10.0f)));
  Vec m = e.power * e.minus_one + (e.power - splat(1.0f));
  return m / (m + splat(2.0f));
}

INLINE Vec sigmoid(Vec x) {
  Exponential e = exponential(at_least(at_most(-x, splat(88.0f)), splat(-87.0f)));
  return splat(1.0f) / (e.power * e.minus_one + (e.power + splat(1.0f)));
}

INLINE Vec relu(Vec x) { return at_least(x, splat(0.0f)); }

// A bfloat16 is the upper half of a float.
typedef uint16_t Half;

inline float widen(Half half) {
  uint32_t word = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

// To the nearest bfloat16, ties to even; a NaN stays one.
inline Half narrow(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  if (x != x) return Half((word >> 16) | 0x40);
  return Half((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

INLINE Vec round_to_bfloat16(Vec v) {
  WordVec word = (WordVec)v;
  WordVec rounded = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  return v == v ? (Vec)rounded : v;
}

INLINE void store_bfloat16(Half* to, Vec v, int count) {
#if defined(__AVX512BF16__)
  __m256bh narrow_lanes = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(to, &narrow_lanes, count * sizeof(Half));
#else
  for (int i = 0; i < count; i++) to[i] = narrow(v[i]);
#endif
}

}  // namespace recurra
