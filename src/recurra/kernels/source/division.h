// How the threads divide a time step: a grid of groups of rows, each split into parts of the units.
//
// Rows of a batch are independent, so groups never wait for each other. With few rows, or many
// threads, several threads share the rows of a group, and each computes some of the units. It reads
// its columns of the weights alone, which stay in its caches for the whole sequence, but all threads
// of the group wait for each other after every step.
#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "range.h"

namespace recurra {

// A time step: `rows` of the batch, and a weight of `panels` for each of `gates`, each of `depth`
// vector pairs; `tile_rows` rows are multiplied at a time.
struct StepSize {
  int64_t rows, panels, gates, depth;
  int tile_rows;
};

StepSize step_size(int64_t rows, int64_t units, int64_t gates, int64_t operand_bytes);

// Bytes of the caches of a core.
struct CacheSizes {
  int64_t first, second;
};

CacheSizes cache_sizes();

// The work of a part: `rows` of the batch, and of every gate the panels in `panels`.
struct Share {
  Range rows, panels;
  int group;
};

struct Division {
  int groups, parts;

  int slots() const { return groups * parts; }

  Share share(int group, int index, int64_t rows, int64_t panels) const {
    return {part(rows, group, groups), part(panels, index, parts), group};
  }
};

// Cycles of a step for the busiest part. The constants were measured on Zen 4 and Zen 5; only the
// ratios matter.
inline double step_cycles(const Division& division, const StepSize& size, const CacheSizes& caches) {
  constexpr double kVectorPair = 128;  // bytes of weights in a row of a panel
  constexpr double kCyclesPerVector = 12;  // of the cell's equations, for each gate
  constexpr double kBarrier = 700, kBarrierPerPart = 40;
  const int64_t rows = (size.rows + division.groups - 1) / division.groups;
  const int64_t panels = (size.panels + division.parts - 1) / division.parts;
  // A row of a tile takes a cycle per vector pair. The first tile brings the panel from the cache
  // that holds this part's weights to the first-level cache, where the other tiles find it.
  const double weight = double(panels * size.gates * size.depth) * kVectorPair;
  const double load = weight <= 0.5 * double(caches.first)     ? 1
                      : weight <= 0.75 * double(caches.second) ? 3
                                                               : 10;
  double pair = 0;
  for (int64_t first = 0; first < rows; first += size.tile_rows)
    pair += std::max(double(std::min<int64_t>(size.tile_rows, rows - first)), first > 0 ? 1 : load);
  const double products = double(panels * size.gates * size.depth) * pair;
  const double equations = double(2 * rows * panels * size.gates) * kCyclesPerVector;
  const double barrier = division.parts > 1 ? kBarrier + kBarrierPerPart * division.parts : 0;
  return products + equations + barrier;
}

// The division with the fewest cycles per step, and of equal ones that with the most groups.
inline Division divide(int threads, const StepSize& size, const CacheSizes& caches) {
  Division best{1, 1};
  double fewest = INFINITY;
  for (int groups = int(std::min<int64_t>(threads, std::max<int64_t>(size.rows, 1))); groups >= 1;
       groups--) {
    const int parts = int(std::clamp<int64_t>(threads / groups, 1, std::max<int64_t>(size.panels, 1)));
    const double cycles = step_cycles({groups, parts}, size, caches);
    if (cycles < fewest) best = {groups, parts}, fewest = cycles;
  }
  return best;
}

}  // namespace recurra
