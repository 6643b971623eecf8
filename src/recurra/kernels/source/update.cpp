// The norm of all gradients, and the update of all parameters with clipping folded in: each number
// is read once and written once. Equations as in torch.optim.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "pool.h"
#include "range.h"
#include "vector.h"

namespace recurra {
namespace {

// Calls `work(tensor, begin, end)` for this thread's part of all numbers together.
template <class Work>
void for_own_part(const Update& u, int thread, int threads, Work work) {
  int64_t total = 0;
  for (int64_t i = 0; i < u.count; i++) total += u.sizes[i];
  Range own = part(total, thread, threads);
  int64_t start = 0;
  for (int64_t i = 0; i < u.count; start += u.sizes[i], i++) {
    int64_t begin = std::max(own.begin - start, int64_t(0));
    int64_t end = std::min(own.end - start, u.sizes[i]);
    if (begin < end) work(i, begin, end);
  }
}

INLINE Vec root(Vec v) {
  for (int i = 0; i < kLanes; i++) v[i] = std::sqrt(v[i]);
  return v;
}

// One vector of one parameter.
template <int kRule, bool kHasMomentum>
INLINE void update(const Update& u, int64_t i, int64_t at, int count) {
  float* parameter = u.parameters[i] + at;
  const Vec decay = splat(u.decays[i]), lr = splat(u.lr);
  Vec p = load(parameter, count), g = load(u.gradients[i] + at, count) * splat(u.factor);
  if (kRule == kAdamW)
    p = p - lr * decay * p;
  else
    g += decay * p;
  if (kRule == kSgd) {
    if (kHasMomentum) {
      float* buffer = u.first[i] + at;
      if (!u.is_first) g += splat(u.momentum) * load(buffer, count);
      store(buffer, g, count);
    }
    return store(parameter, p - lr * g, count);
  }
  float *first = u.first[i] + at, *second = u.second[i] + at;
  Vec m = load(first, count), v = load(second, count);
  m = m + (g - m) * splat(u.new_share);
  v = v * splat(u.beta2) + g * g * splat(u.new_square_share);
  store(first, m, count);
  store(second, v, count);
  Vec denominator = root(v) / splat(u.root_correction) + splat(u.epsilon);
  store(parameter, p - splat(u.lr / u.correction) * m / denominator, count);
}

template <int kRule, bool kHasMomentum>
void update_all(const Update& u) {
  const int threads = thread_count(u.threads);
  run_parts(threads, [&](int index) {
    for_own_part(u, index, threads, [&](int64_t i, int64_t begin, int64_t end) {
      int64_t at = begin;
      for (; at + kLanes <= end; at += kLanes) update<kRule, kHasMomentum>(u, i, at, kLanes);
      if (at < end) update<kRule, kHasMomentum>(u, i, at, int(end - at));
    });
  });
}

}  // namespace
}  // namespace recurra

// The L2 norm of all gradients; NaN or infinite where one of them is, or the sum overflows fp32.
RECURRA_EXPORT double recurra_gradient_norm(const recurra::Update* update) {
  using namespace recurra;
  constexpr int64_t kStretch = 4096;  // numbers summed in fp32 before they join the total
  double totals[kMaxThreads] = {};
  const int threads = thread_count(update->threads);
  run_parts(threads, [&](int index) {
    double total = 0;
    for_own_part(*update, index, threads, [&](int64_t i, int64_t begin, int64_t end) {
      const float* gradient = update->gradients[i];
      for (int64_t first = begin; first < end; first += kStretch) {
        Vec sums[2] = {};
        int64_t last = std::min(first + kStretch, end), at = first;
        for (; at + 2 * kLanes <= last; at += 2 * kLanes)
          for (int v = 0; v < 2; v++) {
            Vec g = load(gradient + at + v * kLanes);
            sums[v] += g * g;
          }
        total += sum(sums[0] + sums[1]);
        for (; at < last; at++) total += gradient[at] * gradient[at];
      }
    });
    totals[index] = total;
  });
  double total = 0;
  for (double part : totals) total += part;
  return std::sqrt(total);
}

RECURRA_EXPORT void recurra_update(const recurra::Update* update) {
  using namespace recurra;
  switch (update->rule) {
    case kSgd:
      return update->first ? update_all<kSgd, true>(*update) : update_all<kSgd, false>(*update);
    case kAdam: return update_all<kAdam, true>(*update);
    case kAdamW: return update_all<kAdamW, true>(*update);
  }
}

RECURRA_EXPORT int64_t recurra_update_bytes() { return sizeof(recurra::Update); }
