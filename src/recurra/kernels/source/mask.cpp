// Dropout masks. Each word of SplitMix64 (Steele, Lea and Flood 2014) determines four entries. It
// is a function of the seed and of its index, so the mask does not depend on the number of threads.
#include <algorithm>

#include "kernels.h"
#include "pool.h"
#include "range.h"

namespace recurra {
namespace {

constexpr int64_t kWords = 64;  // at a time

uint64_t word(uint64_t seed, uint64_t place) {
  uint64_t z = seed + (place + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace
}  // namespace recurra

// `count` numbers: 0 where sixteen random bits are below `threshold`, `kept` elsewhere.
RECURRA_EXPORT void recurra_mask(int32_t threads, uint64_t seed, int32_t threshold, float kept,
                                 int64_t count, float* mask) {
  using namespace recurra;
  const int64_t stretches = (count + 4 * kWords - 1) / (4 * kWords);
  threads = thread_count(threads);
  run_parts(threads, [&](int index) {
    Range own = part(stretches, index, threads);
    for (int64_t stretch = own.begin; stretch < own.end; stretch++) {
      uint64_t words[kWords];
      for (int64_t i = 0; i < kWords; i++) words[i] = word(seed, stretch * kWords + i);
      int64_t first = stretch * 4 * kWords, numbers = std::min(4 * kWords, count - first);
      for (int64_t i = 0; i < numbers; i++) {
        int32_t bits = int32_t(words[i / 4] >> (16 * (i % 4)) & 0xFFFF);
        mask[first + i] = bits < threshold ? 0.0f : kept;
      }
    }
  });
}

// out = values * mask, where the mask of `period` numbers repeats over `count` values.
RECURRA_EXPORT void recurra_apply_mask(int32_t threads, int64_t count, int64_t period,
                                       const float* values, const float* mask, float* out) {
  using namespace recurra;
  threads = thread_count(threads);
  run_parts(threads, [&](int index) {
    const Range own = part(count, index, threads);
    for (int64_t first = own.begin; first < own.end;) {
      const int64_t place = first % period, length = std::min(period - place, own.end - first);
      for (int64_t i = 0; i < length; i++) out[first + i] = values[first + i] * mask[place + i];
      first += length;
    }
  });
}
