"""Compiles csrc/cuda for the CPU: g++ and the stand-in headers of tests/cuda/emulation in place of nvcc."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "tests" / "cuda" / "emulation"
TORCH = Path(torch.__file__).parent
# -O1 compiles in a third of the time of -O3; longjmp from stack to stack is what fortified libraries forbid.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-fvisibility=hidden"]
INCLUDES = [f"-I{EMULATION}", f"-I{ROOT / 'csrc'}"]
BINDING = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{TORCH / 'include'}"]


def digest(*paths: Path, text: str = "") -> str:
    """One name for the content of some files."""
    content = hashlib.sha256(text.encode())
    for path in paths:
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def shared_library(sources: list[Path], folder: Path) -> Path:
    """A shared library made of sources, kernels (.cu) and bindings (.cpp), in folder; kept for the same content."""
    compiler = os.environ.get("CXX", "c++")
    headers = sorted([*(ROOT / "csrc").rglob("*.h"), *EMULATION.glob("*.h")])
    common = digest(*headers, text=f"{compiler} {FLAGS} {torch.__version__}")
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}-{digest(source, text=common)}.o"
        if not made.exists():
            binding = BINDING if source.suffix == ".cpp" else []
            run(compiler, *FLAGS, *INCLUDES, *binding, "-x", "c++", "-c", str(source), "-o", f"{made}.new")
            os.replace(f"{made}.new", made)
        return made

    with (folder / "lock").open("w") as lock, ThreadPoolExecutor(2) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that test side by side compile once
        objects = list(pool.map(compiled, sources))
        made = folder / f"emulated-{digest(*objects)}.so"
        if not made.exists():
            torchs = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
            run(compiler, "-shared", *map(str, objects), *torchs, "-o", f"{made}.new")
            os.replace(f"{made}.new", made)
    return made


def run(*command: str) -> None:
    """Run a compiler; its complaint is the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
