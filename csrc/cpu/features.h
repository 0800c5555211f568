// What this CPU can do, read once from cpuid (x86-64) or implied by the architecture (arm64).
#pragma once

namespace llmcli::cpu {

struct Features {
  bool avx2 = false;    // with FMA and F16C, and the OS saving ymm
  bool avx512 = false;  // F, BW, DQ, VL, and the OS saving zmm
  bool avx512_bf16 = false;
  bool avx512_vnni = false;
  bool amx = false;  // tile, bf16 and int8, with the kernel's permission to use tile data
  bool neon = false;
};

const Features& features();

}  // namespace llmcli::cpu
