// Which matrix-product kernels this build has and this machine can execute.
#include "product.h"

#if defined(RECURRA_TILES) && !defined(RECURRA_EMULATE_AMX)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace recurra {
namespace {

#if defined(RECURRA_EMULATE_AMX)
bool may_use_tiles() { return true; }
#elif defined(RECURRA_TILES)
bool processor_has_tiles() {
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBfloat16) && (d & kTile);
}

// Linux grants the tile registers, whose state is large, to a process that asks for them. Elsewhere
// the register XCR0 reports whether the system saves them.
bool system_grants_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  constexpr uint64_t kTileStates = 3u << 17;
  return (_xgetbv(0) & kTileStates) == kTileStates;
#endif
}

bool may_use_tiles() {
  static const bool granted = processor_has_tiles() && system_grants_tiles();
  return granted;
}
#else
bool may_use_tiles() { return false; }
#endif

bool has_kind(int32_t kind) {
  switch (kind) {
    case kSingle:
    case kRounded: return true;
#if defined(RECURRA_PAIRS)
    case kPairs: return true;
#endif
    case kTiles: return may_use_tiles();
  }
  return false;
}

}  // namespace
}  // namespace recurra

// Returns whether this matrix-product kernel can be used. For kTiles, the first call asks the
// system for permission, which holds for all threads of the process.
RECURRA_EXPORT int32_t recurra_has_kind(int32_t kind) { return recurra::has_kind(kind); }
