// A kernel in progress: the steps of its stages, which the threads of the pool start. See `pool.h`.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "pool.h"
#include "range.h"
#include "spinning.h"

namespace recurra {

constexpr int64_t kCacheLine = 64;

// A counter in a separate cache line.
struct alignas(kCacheLine) Counter {
  std::atomic<int64_t> count{0};
};

// The progress of a stage. A slot is a part of a group: group * parts + part. `started` counts the
// steps that each slot has started, `finished` the steps that the parts of each group have
// finished, added up. No part starts a step before all parts of its group have finished the
// previous one. Therefore all of them have finished s steps if and only if `finished` is at least
// s * parts.
struct StageState {
  Stage stage;
  int slots;
  std::unique_ptr<Counter[]> started, finished;
  alignas(kCacheLine) std::atomic<int> unfinished;  // groups

  explicit StageState(const Stage& given)
      : stage(given),
        slots(given.grid.groups * given.grid.parts),
        started(new Counter[slots]),
        finished(new Counter[given.grid.groups]),
        unfinished(given.grid.steps > 0 ? given.grid.groups : 0) {}
};

// A call of `run_stages`. A worker may look at a job after its end, so the last of those that hold
// it deletes it. The contexts of the stages are used only while a part is running.
class Job {
 public:
  Job(const Stage* stages, int count, int participants)
      : participants_(participants), holders_(participants) {
    for (int i = 0; i < count; i++) stages_.emplace_back(new StageState(stages[i]));
  }

  // Returns when all stages have finished.
  void take_part(int participant) {
    for (auto& state : stages_) run_stage(*state, participant);
  }

  void release() {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

 private:
  void run_stage(StageState& s, int participant) {
    const Range own = part(s.slots, participant, participants_);
    const SpinLimits& limits = spin_limits();
    int64_t spins = 0;
    while (s.unfinished.load(std::memory_order_acquire) > 0) {
      bool advanced = advance(s, own);
      if (!advanced && spins >= limits.help && spins % kSpinsBetweenScans == 0)
        advanced = advance(s, {0, s.slots});
      if (advanced) {
        spins = 0;
      } else if (spins < limits.sleep) {
        relax(), spins++;
      } else {
        sleep(s);
        // A multiple of kSpinsBetweenScans above `help`: the next turn scans the parts of all
        // threads.
        spins = limits.help / kSpinsBetweenScans * kSpinsBetweenScans + kSpinsBetweenScans;
      }
    }
  }

  // Runs the steps that can start; returns whether there were any.
  bool advance(StageState& s, Range slots) {
    bool advanced = false;
    for (int64_t slot = slots.begin; slot < slots.end; slot++)
      while (run_step(s, int(slot))) {
        advanced = true;
        if (s.stage.grid.parts > 1) break;
      }
    return advanced;
  }

  // Runs the next step of a part, unless it has finished, is running, or has to wait.
  bool run_step(StageState& s, int slot) {
    int64_t step = s.started[slot].count.load(std::memory_order_relaxed);
    if (!can_start(s, slot, step)) return false;
    // Fails where another thread has started the step.
    if (!s.started[slot].count.compare_exchange_strong(step, step + 1, std::memory_order_acquire))
      return false;
    const Grid& grid = s.stage.grid;
    const int group = slot / grid.parts;
    s.stage.work(s.stage.context, group, slot % grid.parts, step);
    // A thread increments `sleepers_` before it looks at the progress, and this thread makes progress
    // before it reads `sleepers_`. At least one of them sees the other, so no wake-up is lost.
    if (s.finished[group].count.fetch_add(1) + 1 == grid.steps * grid.parts)
      s.unfinished.fetch_sub(1);
    if (sleepers_.load() > 0) wake();
    return true;
  }

  // Whether a part that has started `step` steps can start the next one.
  static bool can_start(const StageState& s, int slot, int64_t step) {
    const Grid& grid = s.stage.grid;
    return step < grid.steps && s.finished[slot / grid.parts].count.load() >= step * grid.parts;
  }

  void sleep(const StageState& s) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    if (!has_work(s)) progress_.wait(lock);
    sleepers_.fetch_sub(1);
  }

  static bool has_work(const StageState& s) {
    if (s.unfinished.load() == 0) return true;
    for (int slot = 0; slot < s.slots; slot++)
      if (can_start(s, slot, s.started[slot].count.load())) return true;
    return false;
  }

  void wake() {
    { std::lock_guard<std::mutex> lock(mutex_); }
    progress_.notify_all();
  }

  const int participants_;
  std::vector<std::unique_ptr<StageState>> stages_;
  std::atomic<int> holders_;
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable progress_;
};

}  // namespace recurra
