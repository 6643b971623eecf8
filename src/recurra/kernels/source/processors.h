// The processors that this process may use.
#pragma once

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace recurra {

#if defined(__linux__)
inline cpu_set_t added_processors{};  // See `recurra_add_processors`.
#endif

// The processors that this process may use. On Linux they are those of its first thread, of the
// calling thread, and those that were added: each of these threads may be confined to fewer, and
// threads inherit the processors of the thread that starts them.
class Processors {
 public:
  int count() const { return count_; }

#if defined(__linux__)
  // Counts again; returns whether other processors are allowed now.
  bool refresh() {
    cpu_set_t mask, own;
    if (sched_getaffinity(getpid(), sizeof mask, &mask) != 0 ||
        sched_getaffinity(0, sizeof own, &own) != 0) {
      count_ = hardware_threads();
      return false;
    }
    CPU_OR(&mask, &mask, &own);
    CPU_OR(&mask, &mask, &added_processors);
    if (is_known_ && CPU_EQUAL(&mask, &mask_)) return false;
    mask_ = mask;
    is_known_ = true;
    count_ = CPU_COUNT(&mask);
    return true;
  }

  // Sets the affinity mask of a thread to these processors. On failure, it keeps its mask.
  void set_affinity(pid_t thread) const {
    cpu_set_t mask;
    if (!is_known_ || sched_getaffinity(thread, sizeof mask, &mask) != 0) return;
    if (!CPU_EQUAL(&mask, &mask_)) sched_setaffinity(thread, sizeof mask_, &mask_);
  }

 private:
  bool is_known_ = false;
  cpu_set_t mask_;
#else
  bool refresh() {
    count_ = hardware_threads();
    return false;
  }

 private:
#endif
  static int hardware_threads() { return std::max(1, int(std::thread::hardware_concurrency())); }
  int count_ = 1;
};

}  // namespace recurra
