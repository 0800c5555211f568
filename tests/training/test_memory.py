"""Memory that a training step frees serves the next one, on whichever thread."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from llmcli.training import memory
if sys.argv[1] == "kept":
    assert memory.keep()
import torch
torch.set_num_threads(1)
pool = ThreadPoolExecutor(1)

def step():
    pool.submit(lambda: torch.ones(10 << 20).sum()).result()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(12):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def pages(mode: str) -> int:
    """Pages that ten steps of 42 MB asked the kernel for, after twelve to warm up."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    assert pages("kept") < 1000 < pages("given back")
