// How threads share a layer: a grid of groups of rows, each split into groups of units.
//
// Rows of a batch are independent, so threads with separate rows need no synchronization. If the
// batch is too small for that, several threads share the same rows, each computing some of the
// units, and synchronize after every step.
#pragma once

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "vector.h"

namespace recurra {

constexpr int kMostThreads = 256;
constexpr int64_t kFewestRows = 4;  // with fewer rows, loading the weight limits the speed

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A reusable barrier. Threads spin, because a step lasts microseconds; with more threads than cores
// they yield after a while.
class alignas(64) Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
      spins < 2000 ? relax() : void(sched_yield());
  }

 private:
  std::atomic<int> arrived_{0};
  std::atomic<int> phase_{0};
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The `index`-th of `parts` nearly equal parts of [0, size).
inline Range part(int64_t size, int64_t index, int64_t parts) {
  return {size * index / parts, size * (index + 1) / parts};
}

// The work of a thread: `rows` of the batch, and of every gate the panels in `panels`.
struct Share {
  Range rows, panels;
  int group;       // of rows
  int groups;      // of rows in all
  int companions;  // threads that share these rows, this one included
};

// The share of `thread` of `threads`; nothing (no rows) where there are more threads than work.
inline Share share_of(int thread, int threads, int64_t batch, int64_t panels) {
  int groups = int(std::clamp<int64_t>(batch / kFewestRows, 1, threads));
  int companions = int(std::clamp<int64_t>(threads / groups, 1, panels));
  if (thread >= groups * companions) return {{0, 0}, {0, 0}, 0, groups, companions};
  int group = thread / companions;
  return {part(batch, group, groups), part(panels, thread % companions, companions), group, groups,
          companions};
}

}  // namespace recurra
