// Ranges of numbers, and their division into parts.
#pragma once

#include <cstdint>

namespace recurra {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The `index`-th of `parts` nearly equal parts of [0, size).
inline Range part(int64_t size, int64_t index, int64_t parts) {
  return {size * index / parts, size * (index + 1) / parts};
}

}  // namespace recurra
