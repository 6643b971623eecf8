// The threads of the kernels.
//
// A kernel is a sequence of stages, and a stage is a grid of groups of parts. A part runs its steps
// in order, and starts a step when all parts of its group have finished the step before: the parts
// of a time step wait for each other. Groups are independent. The next stage starts when all groups
// have finished.
//
// Every thread has its own parts, so that their data stay in its caches. A part that its thread
// does not start is started by a thread that waits for it. Therefore a kernel needs none of the
// workers: on a busy machine, where they may not be scheduled for milliseconds, the calling thread
// does their work. What a part computes depends on its place in the grid, never on the thread that
// runs it. So results depend on the grid alone.
//
// Threads that wait spin, because a step lasts microseconds, and sleep after `kSpinMicroseconds`.
#pragma once

#include <cstdint>

namespace recurra {

constexpr int kMaxThreads = 256;  // of a kernel; the size of arrays with an entry per thread

inline int thread_count(int64_t wanted) {
  return int(wanted < 1 ? 1 : wanted > kMaxThreads ? kMaxThreads : wanted);
}

struct Grid {
  int groups, parts;  // parts of each group
  int64_t steps;      // of each part
};

struct Stage {
  Grid grid;
  void (*work)(void* context, int group, int part, int64_t step);
  void* context;
};

// A stage that calls `work(group, part, step)`.
template <class Work>
Stage stage(Grid grid, Work& work) {
  auto call = [](void* context, int group, int part, int64_t step) {
    (*static_cast<Work*>(context))(group, part, step);
  };
  return {grid, call, const_cast<void*>(static_cast<const void*>(&work))};
}

// Runs the stages one after the other by at most `threads` threads, one of which is the caller. If
// another thread of the process is running a kernel, the caller runs all parts.
void run_stages(int threads, const Stage* stages, int count);

template <class... Stages>
void run_stages(int threads, const Stages&... stages) {
  const Stage all[] = {stages...};
  run_stages(threads, all, int(sizeof...(Stages)));
}

// A single stage of `threads` independent parts: calls `work(part)` once for each.
template <class Work>
void run_parts(int threads, Work work) {
  auto one = [&](int, int part, int64_t) { work(part); };
  run_stages(threads, stage({1, threads, 1}, one));
}

}  // namespace recurra
