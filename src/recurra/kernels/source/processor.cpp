// The features of this processor that the operating system enables. This library is separate, and
// compiled for the baseline of the architecture in wheels, because it decides which library of the
// kernels may be loaded.
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

struct Names {
  char text[512] = "";

  void add(const char* name, bool exists) {
    if (!exists) return;
    if (text[0]) std::strcat(text, " ");
    std::strcat(text, name);
  }
};

#if defined(__APPLE__)
bool states(const char* name) {
  int exists = 0;
  size_t size = sizeof exists;
  return !sysctlbyname(name, &exists, &size, nullptr, 0) && exists;
}
#endif

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;

  Registers(uint32_t leaf, uint32_t subleaf) {
    if (!__get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx)) eax = ebx = ecx = edx = 0;
  }
};

bool has(uint32_t word, int bit) { return word >> bit & 1; }

// Kinds of registers, as bits of XCR0.
constexpr uint64_t kAvx = 0x6, kAvx512 = 0xe6, kAmx = 0x60000;

// The registers that the operating system saves when it switches threads.
uint64_t saved_registers() {
  if (!has(Registers(1, 0).ecx, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

bool saves(uint64_t kinds) {
#if defined(__APPLE__)
  // macOS saves the registers of AVX-512 from the first use on, and states here that it can.
  if (kinds == kAvx512) return states("hw.optional.avx512f");
#endif
  return (saved_registers() & kinds) == kinds;
}

void add_all(Names& names) {
  Registers basic(1, 0), more(7, 0), extended(0x80000001, 0);
  names.add("ssse3", has(basic.ecx, 9));
  names.add("sse4.1", has(basic.ecx, 19));
  names.add("sse4.2", has(basic.ecx, 20));
  names.add("popcnt", has(basic.ecx, 23));
  names.add("movbe", has(basic.ecx, 22));
  names.add("bmi1", has(more.ebx, 3));
  names.add("bmi2", has(more.ebx, 8));
  names.add("lzcnt", has(extended.ecx, 5));
  bool saves_avx = saves(kAvx);
  names.add("avx", saves_avx && has(basic.ecx, 28));
  names.add("fma", saves_avx && has(basic.ecx, 12));
  names.add("f16c", saves_avx && has(basic.ecx, 29));
  names.add("avx2", saves_avx && has(more.ebx, 5));
  bool saves_avx512 = saves(kAvx512);
  names.add("avx512f", saves_avx512 && has(more.ebx, 16));
  names.add("avx512dq", saves_avx512 && has(more.ebx, 17));
  names.add("avx512cd", saves_avx512 && has(more.ebx, 28));
  names.add("avx512bw", saves_avx512 && has(more.ebx, 30));
  names.add("avx512vl", saves_avx512 && has(more.ebx, 31));
  names.add("avx512bf16", saves_avx512 && more.eax >= 1 && has(Registers(7, 1).eax, 5));
  bool saves_tiles = saves(kAmx);
  names.add("amx-tile", saves_tiles && has(more.edx, 24));
  names.add("amx-bf16", saves_tiles && has(more.edx, 22));
}

#else

bool has_bf16() {
#if defined(__linux__)
  return getauxval(AT_HWCAP2) >> 14 & 1;  // HWCAP2_BF16
#elif defined(__APPLE__)
  return states("hw.optional.arm.FEAT_BF16");
#elif defined(_WIN32)
  return IsProcessorFeaturePresent(68);  // PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE
#else
  return false;
#endif
}

void add_all(Names& names) { names.add("bf16", has_bf16()); }

#endif

}  // namespace

// Names separated by spaces.
RECURRA_EXPORT const char* recurra_processor_features() {
  static Names names;
  if (!names.text[0]) add_all(names);
  return names.text;
}
