"""What the build says when it cannot build; the build itself is what every other test stands on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools")


def setup(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py from the checkout with changed environment variables."""
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_no_compiler_names_the_remedies() -> None:
    done = setup("--name", CXX="no-such-compiler")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: expected a C++17 compiler, found none")
    assert "LLMCLI_BUILD_KERNELS=0" in line


def test_without_kernels_no_compiler_is_asked_for() -> None:
    done = setup("--name", CXX="no-such-compiler", LLMCLI_BUILD_KERNELS="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("llmcli")


# What is built for a torch (for CUDA?), a toolkit (there?) and LLMCLI_CUDA, one line each; a GPU is not asked for.
CASES = [
    (True, True, ""),
    (True, True, "0"),
    (True, False, ""),
    (False, True, ""),
    (False, True, "1"),
    (True, True, "y"),
]
BUILDS = """
import os, runpy, setuptools, sys, torch, torch.utils.cpp_extension as build, types
sys.modules["pybind11"] = types.SimpleNamespace(get_include=lambda: "include")
setuptools.setup = lambda **given: print(*given["ext_modules"][0].sources, os.environ.get("TORCH_CUDA_ARCH_LIST"))
for cuda, toolkit, wish in {cases}:
    torch.version.cuda, build.CUDA_HOME = "13.0" if cuda else None, {home!r} if toolkit else None
    os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
    os.environ["LLMCLI_CUDA"] = wish
    try:
        runpy.run_path("setup.py")
    except SystemExit as stopped:
        print(stopped)
"""


def test_cuda_kernels_are_built_by_torch_toolkit_and_wish(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    code = BUILDS.format(cases=CASES, home=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "LLMCLI_BUILD_KERNELS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    built, *without, refused, unknown = [line.split() for line in done.stdout.splitlines()]
    assert {"csrc/cuda/softmax.cu", "csrc/ops/softmax_cuda.cpp", "csrc/ops/softmax_cpu.cpp"} <= set(built)
    assert built[-1] == "8.0;8.6;8.9;9.0a"
    for sources in without:
        assert "csrc/ops/softmax_cpu.cpp" in sources
        assert not [name for name in sources if "cuda" in name]
        assert sources[-1] == "None"
    assert "LLMCLI_CUDA=1: expected a CUDA build of torch" in " ".join(refused)
    assert "LLMCLI_CUDA: expected 0, 1 or nothing, got 'y'" in " ".join(unknown)


def test_kernels_are_there_unless_they_were_declined() -> None:
    from llmcli.ops import registry

    declined = os.environ.get("LLMCLI_BUILD_KERNELS") == "0"
    assert (registry.kernels is None) == declined, registry.why_no_kernels
