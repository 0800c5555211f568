"""Peak memory of the fused vocabulary projection and cross-entropy beside torch's, forward and backward.

    python -m benchmarks.loss_memory

4 x 1,024 tokens of width 768, 50,257 entries, as in `llmcli bench kernels linear_cross_entropy`. Each contestant has a
process of its own: what the loss and its gradients add to what is there with its inputs, after a small one to warm up.
Needs Linux, which lets a process forget its highest resident set.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.document import arguments, kept
from llmcli.benchmarking.kernel_cases import vocabulary_loss

SHAPE = (4096, 768, 50257)  # tokens, width, entries
CONTESTANTS = ("llmcli", "torch")
PRECISIONS = ("float32", "bfloat16")
GOAL = 0.1  # of torch's


def resident(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{what}:")).split()[1])


def forget() -> None:
    """Let VmHWM begin anew (man 5 proc_pid_clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def added(name: str, precision: str, shape: tuple[int, int, int] = SHAPE) -> int:
    """Bytes that one loss with its gradients adds at most to the resident set of this process."""
    dtype = getattr(torch, precision)
    side = {"llmcli": "ours", "torch": "torch"}[name]
    getattr(vocabulary_loss(64, 64, 512, dtype), side)()
    work = getattr(vocabulary_loss(*shape, dtype), side)
    forget()
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def in_process(name: str, precision: str, threads: int) -> int:
    """The same in a process of its own. Raises CalledProcessError."""
    code = (
        f"import torch; torch.set_num_threads({threads}); from benchmarks import loss_memory; "
        f"print(loss_memory.added({name!r}, {precision!r}))"
    )
    return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    given = arguments(__doc__)
    with kept("loss-memory", given.output) as document:
        rounds = {
            precision: {name: [in_process(name, precision, given.threads) for _ in range(3)] for name in CONTESTANTS}
            for precision in PRECISIONS
        }
        document |= {"shape": SHAPE, "goal": GOAL, "peak_bytes": rounds}
