"""Builds llmcli._C: CPU kernels for every instruction set in one binary, registered through torch's stable ABI.

LLMCLI_BUILD_KERNELS=0 builds no extension: every operator then runs on torch alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
STABLE_ABI = "0x020b000000000000"  # torch 2.11: the oldest torch that the binary serves


def compiler() -> str | None:
    """The C++ compiler that torch's build will call, or None."""
    return shutil.which(os.environ.get("CXX", "c++").split()[0])


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
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    sources = sorted(
        str(p.relative_to(ROOT)) for room in ("csrc/ops", "csrc/cpu") for p in (ROOT / room).rglob("*.cpp")
    )
    module = CppExtension(
        "llmcli._C",
        sources,
        include_dirs=[pybind11.get_include()],
        depends=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")),
        # GCC warns about its own AVX-512 headers (maybe-uninitialized) and about what the ABI of vectors was (psabi).
        extra_compile_args=[
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
        ],
        extra_link_args=["-s"] if sys.platform == "linux" else [],
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)}}


setup(**extension())
