#include "features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace llmcli::cpu {
namespace {

#if defined(__x86_64__)
unsigned long long xcr0() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

// Linux hands out the 8 KiB tile state on request only, once per process (arch_prctl ARCH_REQ_XCOMP_PERM,
// XTILEDATA).
bool request_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features f;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C, avx = c & bit_AVX;
  if (!osxsave || !avx) return f;
  const unsigned long long saved = xcr0();
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const unsigned leaf7_b = b, leaf7_c = c, leaf7_d = d;
  unsigned leaf7_1_a = 0;
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) leaf7_1_a = a;
  const auto bit = [](unsigned word, int n) { return (word >> n & 1) != 0; };
  f.avx2 = ymm && fma && f16c && bit(leaf7_b, 5);
  f.avx512 = f.avx2 && zmm && bit(leaf7_b, 16) && bit(leaf7_b, 17) && bit(leaf7_b, 30) && bit(leaf7_b, 31);
  f.avx512_bf16 = f.avx512 && bit(leaf7_1_a, 5);
  f.avx512_vnni = f.avx512 && bit(leaf7_c, 11);
  f.amx = f.avx512_bf16 && f.avx512_vnni && tiles && bit(leaf7_d, 22) && bit(leaf7_d, 24) &&
          bit(leaf7_d, 25) && request_tiles();
  return f;
}
#elif defined(__aarch64__)
Features detect() {
  Features f;
  f.neon = true;
  return f;
}
#else
Features detect() { return {}; }
#endif

}  // namespace

const Features& features() {
  static const Features found = detect();
  return found;
}

}  // namespace llmcli::cpu
