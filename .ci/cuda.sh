#!/usr/bin/env bash
# Compiles the CUDA kernels for sm_80 and sm_90a, where nvcc is at hand: no GPU is needed, and torch may be a CPU
# build. Fails when a kernel's registers spill, or its products must wait for each other. Then the bindings' syntax,
# with the headers of the torch of $1 (a python).
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null || true)
if [ -z "$nvcc" ]; then
  echo "no nvcc: the CUDA kernels were not compiled"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile() { # one .cu file; the assembler's report goes to $scratch
  "$1" -std=c++17 -O3 -DLLMCLI_SM90A -gencode arch=compute_80,code=sm_80 \
    -gencode arch=compute_90a,code=sm_90a -Xptxas -v -Xcompiler -Wall,-Wextra -c "$2" -o "$3/$(basename "$2").o" >"$3/$(basename "$2").log" 2>&1 || {
    cat "$3/$(basename "$2").log"
    exit 1
  }
}
export -f compile
printf '%s\n' csrc/cuda/*.cu | xargs -P 2 -I{} bash -c 'compile "$@"' compile "$nvcc" {} "$scratch"
if grep -H -B 2 -E '[1-9][0-9]* bytes spill' "$scratch"/*.log; then
  echo "error: expected kernels that keep to their registers, got the spills above"
  exit 1
fi
if grep -h -E 'wgmma.* serialized' "$scratch"/*.log; then exit 1; fi
if grep -h 'warning' "$scratch"/*.log; then exit 1; fi
echo "$(grep -h 'Compiling entry' "$scratch"/*.log | wc -l) kernels compiled, no spills"

headers=$("$1" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent / "include")')
toolkit=$("$nvcc" --dryrun -E csrc/cuda/softmax.cu 2>&1 | sed -n 's/^#$ TOP=//p')
printf '%s\n' csrc/ops/*_cuda.cpp | xargs -P 2 -I{} "${CXX:-c++}" -fsyntax-only -std=c++17 -fvisibility=hidden \
  -Wall -Wextra -Werror -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem "$headers" -isystem "$toolkit/include" {}
echo "$(ls csrc/ops/*_cuda.cpp | wc -l) bindings parsed"
