// The elementwise recurrence h_t = a_t h_{t-1} + b_t and its gradients. Columns are independent, so
// threads have separate columns and need no synchronization.
#include <algorithm>

#include "kernels.h"
#include "pool.h"
#include "range.h"
#include "vector.h"

namespace recurra {
namespace {

// Vectors of columns that run through time together: their state stays in registers.
constexpr int kColumns = 4;

// Calls `walk(first, count)` for this thread's columns, `count` lanes of up to kColumns vectors.
template <class Walk>
void for_own_columns(const LinearScan& s, Walk walk) {
  const int threads = thread_count(s.threads);
  run_parts(threads, [&](int index) {
    constexpr int64_t kWide = kColumns * kLanes;
    Range own = part((s.columns + kWide - 1) / kWide, index, threads);
    for (int64_t block = own.begin; block < own.end; block++)
      walk(block * kWide, std::min(kWide, s.columns - block * kWide));
  });
}

// Vectors of a block, and the lanes in use of each.
template <class Work>
INLINE void for_vectors(int64_t count, Work work) {
  if (count == kColumns * kLanes) {
    for (int v = 0; v < kColumns; v++) work(v, kLanes);
  } else {
    for (int v = 0; v * kLanes < count; v++)
      work(v, int(std::min<int64_t>(kLanes, count - v * kLanes)));
  }
}

void forward(const LinearScan& s) {
  for_own_columns(s, [&](int64_t first, int64_t count) {
    Vec h[kColumns];
    for_vectors(count,
                [&](int v, int lanes) { h[v] = load(s.initial + first + v * kLanes, lanes); });
    for (int64_t t = 0; t < s.steps; t++)
      for_vectors(count, [&](int v, int lanes) {
        int64_t at = t * s.columns + first + v * kLanes;
        h[v] = load(s.a + at, lanes) * h[v] + load(s.b + at, lanes);
        store(s.outputs + at, h[v], lanes);
      });
  });
}

// dL/db_t is what reaches h_t: its own gradient, and a_{t+1} times what reaches h_{t+1}.
void backward(const LinearScan& s) {
  const Vec scale = splat(s.recurrent_scale);
  for_own_columns(s, [&](int64_t first, int64_t count) {
    Vec later[kColumns];
    for_vectors(count, [&](int v, int lanes) {
      later[v] = load(s.grad_final + first + v * kLanes, lanes);
    });
    for (int64_t t = s.steps - 1; t >= 0; t--)
      for_vectors(count, [&](int v, int lanes) {
        int64_t at = t * s.columns + first + v * kLanes;
        const float* before = t > 0 ? s.outputs + at - s.columns : s.initial + first + v * kLanes;
        Vec grad = load(s.grad_outputs + at, lanes) + later[v];
        store(s.grad_b + at, grad, lanes);
        store(s.grad_a + at, grad * load(before, lanes), lanes);
        later[v] = scale * load(s.a + at, lanes) * grad;
      });
    for_vectors(count, [&](int v, int lanes) {
      store(s.grad_initial + first + v * kLanes, later[v], lanes);
    });
  });
}

}  // namespace
}  // namespace recurra

RECURRA_EXPORT void recurra_scan_forward(const recurra::LinearScan* scan) {
  recurra::forward(*scan);
}

RECURRA_EXPORT void recurra_scan_backward(const recurra::LinearScan* scan) {
  recurra::backward(*scan);
}

RECURRA_EXPORT int64_t recurra_linear_scan_bytes() { return sizeof(recurra::LinearScan); }
