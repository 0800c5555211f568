// Opens and closes an instruction set for the code between, so that one binary holds all of them. Everything
// from the standard library is included here, before any target is open: an inline function compiled for
// AVX-512 must never be the copy that the linker keeps for the baseline path.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

#define LLMCLI_STRING_(x) #x
#define LLMCLI_STRING(x) LLMCLI_STRING_(x)
#define LLMCLI_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define LLMCLI_TARGET_BEGIN(isa) \
  LLMCLI_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define LLMCLI_TARGET_END LLMCLI_PRAGMA(clang attribute pop)
#else
#define LLMCLI_TARGET_BEGIN(isa) LLMCLI_PRAGMA(GCC push_options) LLMCLI_PRAGMA(GCC target(isa))
#define LLMCLI_TARGET_END LLMCLI_PRAGMA(GCC pop_options)
#endif

#define LLMCLI_INLINE inline __attribute__((always_inline))
// Before a loop over registers: an array that it indexes stays in registers only when the loop is unrolled.
#if defined(__clang__)
#define LLMCLI_UNROLL LLMCLI_PRAGMA(unroll)
#else
#define LLMCLI_UNROLL LLMCLI_PRAGMA(GCC unroll 16)
#endif
#define LLMCLI_INLINE_BODY __attribute__((always_inline))  // of a lambda
