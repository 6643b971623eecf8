// The sizes of the caches, and the division of a step for tests and reports.
#include "division.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif !defined(_WIN32)
#include <unistd.h>
#endif

#include "kernels.h"
#include "product.h"

namespace recurra {
namespace {

int64_t cache_size(int level) {
#if defined(__APPLE__)
  int64_t bytes = 0;
  size_t length = sizeof bytes;
  const char* name = level == 1 ? "hw.l1dcachesize" : "hw.l2cachesize";
  return sysctlbyname(name, &bytes, &length, nullptr, 0) == 0 ? bytes : 0;
#elif defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL2_CACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

StepSize step_size(int64_t rows, int64_t units, int64_t gates, int64_t operand_bytes) {
  const int64_t depth = (units * operand_bytes + 3) / int64_t(sizeof(float));
  return {rows, panels(units), gates, depth, kTileRows};
}

CacheSizes cache_sizes() {
  static const CacheSizes sizes = [] {
    const int64_t first = cache_size(1), second = cache_size(2);
    return CacheSizes{first > 0 ? first : 32 << 10, second > 0 ? second : 1 << 20};
  }();
  return sizes;
}

}  // namespace recurra

RECURRA_EXPORT int64_t recurra_cache_bytes(int32_t level) {
  const recurra::CacheSizes sizes = recurra::cache_sizes();
  return level == 1 ? sizes.first : sizes.second;
}

// The division that `divide_layer` chooses for caches of these sizes: `chosen` receives the groups
// and the parts of each.
RECURRA_EXPORT void recurra_divide(int32_t threads, int64_t rows, int64_t units, int64_t gates,
                                   int32_t operand_bytes, int64_t first_cache, int64_t second_cache,
                                   int32_t* chosen) {
  using namespace recurra;
  const StepSize size = step_size(rows, units, gates, operand_bytes);
  const Division division = divide(thread_count(threads), size, {first_cache, second_cache});
  chosen[0] = division.groups, chosen[1] = division.parts;
}
