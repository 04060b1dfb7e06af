// What the processor can run, by asking it: compilers differ in the names that their own builtins know, and on Windows
// clang-cl's need a library that is not linked.
#pragma once

struct Features {
  bool avx2, avx512;
};

#if defined(MAMBAIR_X86)
#include <cpuid.h>

inline Features processor_features() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
  const bool fma = c & (1u << 12), saves = c & (1u << 27);
  if (!fma || !saves || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  unsigned kept, high;  // registers that the operating system keeps: bits 1, 2 of YMM, 5 to 7 of ZMM
  __asm__("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
  constexpr unsigned AVX2 = 1u << 5, AVX512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  const bool avx2 = (b & AVX2) && (kept & 0x06) == 0x06;
  return {avx2, avx2 && (b & AVX512) == AVX512 && (kept & 0xe6) == 0xe6};
}
#else
inline Features processor_features() { return {}; }
#endif
