"""Builds llmcli._C: CPU kernels for every instruction set in one binary, registered through torch's stable ABI.

LLMCLI_BUILD_KERNELS=0 builds no extension: every operator then runs on torch alone. CUDA kernels are built when torch
is a CUDA build and its toolkit is found, whether there is a GPU or not; LLMCLI_CUDA=0 leaves them out, LLMCLI_CUDA=1
makes it an error that they cannot be built. TORCH_CUDA_ARCH_LIST chooses the GPUs they are built for.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
STABLE_ABI = "0x020b000000000000"  # torch 2.11: the oldest torch that the binary serves
ARCHITECTURES = "8.0;8.6;8.9;9.0a"  # of GPUs


def compiler() -> str | None:
    """The C++ compiler that torch's build will call, or None."""
    return shutil.which(os.environ.get("CXX", "c++").split()[0])


def cuda() -> bool:
    """Whether CUDA kernels are built."""
    wish = os.environ.get("LLMCLI_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"error: LLMCLI_CUDA: expected 0, 1 or nothing, got '{wish}'")
    if wish == "0":
        return False
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    toolkit = CUDA_HOME is not None and (Path(CUDA_HOME) / "include" / "cuda_runtime.h").exists()
    if wish == "1" and not (torch.version.cuda and toolkit):
        lacking = f"no toolkit in {CUDA_HOME}" if torch.version.cuda else f"torch {torch.__version__}, a CPU build"
        sys.exit(
            f"error: LLMCLI_CUDA=1: expected a CUDA build of torch and its CUDA toolkit, got {lacking}. Install torch "
            "for CUDA, set CUDA_HOME to the toolkit, and build with --no-build-isolation; or unset LLMCLI_CUDA."
        )
    return bool(torch.version.cuda and toolkit)


def extension() -> dict[str, object]:
    """Arguments of setup() that describe the extension module."""
    if os.environ.get("LLMCLI_BUILD_KERNELS", "1") == "0":
        return {}
    if compiler() is None:
        sys.exit(
            "error: expected a C++17 compiler, found none. Install one (Debian, Ubuntu: apt install g++; "
            "macOS: xcode-select --install) or set CXX; or set LLMCLI_BUILD_KERNELS=0 to install "
            "without kernels, on torch's operators alone."
        )
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    with_cuda = cuda()
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    sources = [
        str(p.relative_to(ROOT))
        for p in sorted((ROOT / "csrc").rglob("*.c*"))
        if p.suffix in (".cpp", ".cu") and (with_cuda or (not p.stem.endswith("_cuda") and p.suffix == ".cpp"))
    ]
    module = (CUDAExtension if with_cuda else CppExtension)(
        "llmcli._C",
        sources,
        include_dirs=[pybind11.get_include()],
        depends=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")),
        # GCC warns about its own AVX-512 headers (maybe-uninitialized) and about what the ABI of vectors was (psabi).
        extra_compile_args={
            "cxx": [
                "-O3",
                "-g0",
                "-ffp-contract=off",  # a product is fused with a sum where a kernel says so, in every copy of a loop
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wno-maybe-uninitialized",
                "-Wno-psabi",
                "-Wno-unknown-pragmas",
                f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
                *(["-DLLMCLI_CUDA", "-DUSE_CUDA"] if with_cuda else []),
            ],
            "nvcc": [
                "-O3",
                "-std=c++17",
                *(["-DLLMCLI_SM90A"] if "9.0a" in os.environ.get("TORCH_CUDA_ARCH_LIST", "") else []),
            ],
        },
        extra_link_args=["-s"] if sys.platform == "linux" else [],
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)}}


setup(**extension())
