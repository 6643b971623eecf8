// Runs random stages by many threads, and checks the order of the steps. Compiled by test_pool.py.
#include "pool.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

extern "C" void recurra_limit_threads(int32_t threads);

namespace {

using namespace recurra;

// Every step of a part adds the sum of its group after the step before, without atomics: a data race
// or a wrong order changes the results.
bool run_once(std::mt19937& random, int threads) {
  auto draw = [&](int most) { return int(random() % most) + 1; };
  const Grid first{draw(4), draw(6), draw(12)}, second{draw(8), 1, draw(3)};
  std::vector<std::vector<long>> values(first.steps + 1);
  for (auto& step : values) step.assign(first.groups * first.parts, 1);
  long wrong = 0;
  auto step = [&](int group, int part, int64_t s) {
    const long* before = &values[s][group * first.parts];
    long sum = 0;
    for (int i = 0; i < first.parts; i++) sum += before[i];
    values[s + 1][group * first.parts + part] = sum;
  };
  std::vector<long> totals(second.groups, 0);
  auto total = [&](int group, int, int64_t s) {
    if (s > 0) return;
    for (long value : values[first.steps]) totals[group] += value;
  };
  run_stages(threads, stage(first, step), stage(second, total));
  long expected = 1;
  for (int64_t s = 0; s < first.steps; s++) expected *= first.parts;
  for (long value : values[first.steps]) wrong += value != expected;
  for (long value : totals) wrong += value != expected * first.groups * first.parts;
  return wrong == 0;
}

}  // namespace

int main(int, char** arguments) {
  const int calls = std::atoi(arguments[1]), limit = std::atoi(arguments[2]);
  recurra_limit_threads(limit);
  std::atomic<int> failures{0};
  // Two callers: one of them finds the pool in use.
  auto call = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < calls; i++) failures += !run_once(random, int(random() % 17) + 1);
  };
  std::thread other(call, 1u);
  call(2u);
  other.join();
  std::printf("%d failures\n", failures.load());
  return failures > 0;
}
