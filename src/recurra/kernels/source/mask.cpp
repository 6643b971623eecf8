// Dropout masks. Each word of SplitMix64 (Steele, Lea and Flood 2014) determines four entries. It
// is a function of the seed and of its index, so the mask does not depend on the number of threads.
#include <algorithm>

#include "kernels.h"
#include "pool.h"
#include "range.h"

namespace recurra {
namespace {

// A chunk: the words and the mask entries that `draw` computes at a time.
constexpr int64_t kWords = 64, kEntries = 4 * kWords;

uint64_t word(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The entries of chunk number `chunk`. The counts are constants and nothing is read through
// pointers that may alias, so the compiler vectorizes the loops.
void draw(uint64_t seed, int64_t chunk, int32_t threshold, float scale, float* entries) {
  uint64_t words[kWords];
  for (int64_t i = 0; i < kWords; i++) words[i] = word(seed, chunk * kWords + i);
  for (int64_t i = 0; i < kEntries; i++) {
    const int32_t bits = int32_t(words[i / 4] >> (16 * (i % 4)) & 0xFFFF);
    entries[i] = bits < threshold ? 0.0f : scale;
  }
}

}  // namespace
}  // namespace recurra

// Fills `mask` with `count` entries: 0 where sixteen random bits are below `threshold` = 65536 p,
// otherwise `scale` = 1 / (1 - p).
RECURRA_EXPORT void recurra_mask(int32_t threads, uint64_t seed, int32_t threshold, float scale,
                                 int64_t count, float* mask) {
  using namespace recurra;
  const int64_t chunks = (count + kEntries - 1) / kEntries;
  threads = thread_count(threads);
  run_parts(threads, [=](int index) {
    const Range own = part(chunks, index, threads);
    for (int64_t chunk = own.begin; chunk < own.end; chunk++) {
      const int64_t first = chunk * kEntries;
      if (first + kEntries <= count) {
        draw(seed, chunk, threshold, scale, mask + first);
      } else {
        float entries[kEntries];
        draw(seed, chunk, threshold, scale, entries);
        std::copy(entries, entries + (count - first), mask + first);
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
