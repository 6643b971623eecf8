// The sizes of the blocks of rows for a large vocabulary, and the prefetching of slices.
#pragma once

#include <algorithm>
#include <cstdint>

#include "product.h"

namespace recurra {

constexpr int64_t kSlice = 128;  // entries of the vocabulary whose gradients stay in the L2 cache

// The sizes of the blocks, and of the memory that they need.
struct BlockSizes {
  int64_t rows, blocks;  // rows of a block, a multiple of kBlock, and the number of blocks
  int64_t units;         // of a packed row
  int64_t stride;        // of the gradients of the logits of an entry

  // The number of rows does not depend on the number of threads, so the order of the sums over rows
  // does not either.
  BlockSizes(int64_t all_rows, int64_t num_units, int64_t vocabulary) {
    constexpr int64_t kLogits = 12 << 20;  // 48 MiB
    // With fewer rows, the weights are read too often. With at most kMaxRows rows, the logits of a
    // slice and their gradients take at most 264 KiB, which fits in the L2 cache.
    constexpr int64_t kMinRows = 128, kMaxRows = 256;
    const int64_t limit = std::clamp(kLogits / vocabulary / kBlock * kBlock, kMinRows, kMaxRows);
    blocks = std::max<int64_t>(1, (all_rows + limit - 1) / limit);
    const int64_t even = (all_rows + blocks - 1) / blocks;
    rows = std::max<int64_t>(1, (even + kBlock - 1) / kBlock) * kBlock;
    blocks = (all_rows + rows - 1) / rows;
    units = panels(num_units) * kPanel;
    stride = rows + kLanes;
  }

  int64_t row_panels() const { return rows / kPanel; }
};

// Prefetches the memory that the next slice reads. The hardware prefetcher does not, because the
// products read short rows.
class Prefetcher {
 public:
  Prefetcher() = default;
  void add(const void* from, int64_t bytes) {
    if (bytes <= 0) return;
    ranges_[count_++] = {static_cast<const char*>(from), static_cast<const char*>(from) + bytes};
    lines_ += (bytes + kLine - 1) / kLine;
  }

  // Divides the lines by the number of calls of `fetch` that follow.
  void divide(int64_t calls) { share_ = (lines_ + calls - 1) / calls; }

  // Prefetches the next lines into the L2 cache.
  void fetch() {
    for (int64_t line = 0; line < share_ && at_ < count_; line++) {
      __builtin_prefetch(ranges_[at_].from, 0, 2);
      ranges_[at_].from += kLine;
      if (ranges_[at_].from >= ranges_[at_].end) at_++;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Span {
    const char *from, *end;
  };
  Span ranges_[3];
  int count_ = 0, at_ = 0;
  int64_t lines_ = 0, share_ = 0;
};

}  // namespace recurra
