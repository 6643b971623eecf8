// How long a thread of the pool spins while it waits.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace recurra {

// The time for which a waiting thread spins before it sleeps. If the wait is longer, the other
// thread is probably not scheduled. Waking a sleeping thread takes 5 to 50 us.
constexpr double kSpinMicroseconds = 100;
// The time after which a thread that waits starts parts of other threads: longer than it takes a
// spinning thread to see that it may continue.
constexpr double kHelpMicroseconds = 3;
// After that time, a waiting thread scans the parts of all threads at every 16th spin.
constexpr int kSpinsBetweenScans = 16;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

struct SpinLimits {
  int64_t help, sleep;
};

// The duration of `relax` differs by a factor of ten between processors.
inline SpinLimits measure_spins() {
  constexpr int kSpins = 1000;
  double shortest = 1e9;
  for (int repetition = 0; repetition < 3; repetition++) {
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kSpins; i++) relax();
    std::chrono::duration<double, std::micro> passed = std::chrono::steady_clock::now() - start;
    shortest = std::min(shortest, passed.count());
  }
  const double per_microsecond = kSpins / std::max(shortest, 1e-3);
  return {int64_t(kHelpMicroseconds * per_microsecond), int64_t(kSpinMicroseconds * per_microsecond)};
}

inline const SpinLimits& spin_limits() {
  static const SpinLimits limits = measure_spins();
  return limits;
}

}  // namespace recurra
