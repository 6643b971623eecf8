// The sizes of the blocks of rows of a large vocabulary, and the memory that is read ahead.
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

  // The rows depend on nothing but the sizes, so that the number of threads does not change the
  // order of the sums over rows.
  BlockSizes(int64_t all_rows, int64_t num_units, int64_t vocabulary) {
    constexpr int64_t kLogits = 12 << 20;  // 48 MiB
    // Fewer rows read the weights too often; those and their gradients fit the L2 cache.
    constexpr int64_t kFewest = 128, kMost = 256;
    const int64_t most = std::clamp(kLogits / vocabulary / kBlock * kBlock, kFewest, kMost);
    blocks = std::max<int64_t>(1, (all_rows + most - 1) / most);
    const int64_t even = (all_rows + blocks - 1) / blocks;
    rows = std::max<int64_t>(1, (even + kBlock - 1) / kBlock) * kBlock;
    blocks = (all_rows + rows - 1) / rows;
    units = panels(num_units) * kPanel;
    stride = rows + kLanes;
  }

  int64_t row_panels() const { return rows / kPanel; }
};

// Memory that is read next. The hardware alone would not foresee it: the products read short rows.
class Ahead {
 public:
  Ahead() = default;
  void add(const void* from, int64_t bytes) {
    if (bytes <= 0) return;
    ranges_[count_++] = {static_cast<const char*>(from), static_cast<const char*>(from) + bytes};
    lines_ += (bytes + kLine - 1) / kLine;
  }

  // Divides the lines by the number of calls of `fetch` that follow.
  void divide(int64_t calls) { share_ = (lines_ + calls - 1) / calls; }

  // Brings the next lines into the L2 cache.
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
