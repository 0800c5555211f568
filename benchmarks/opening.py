"""Opening GGUF files: `llmcli.loading.load` beside llama.cpp's, in turns, each in a process of its own.

    python benchmarks/opening.py FILE... --peer PYTHON    # an interpreter that has llama-cpp-python

A process opens its file twice and reports the second time, so that neither the disk nor the first use of a library
counts. Medians of the rounds, in seconds, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

OURS = "from llmcli.loading import load; import torch; torch.set_num_threads(2)\ndef open_file(path): load(path)\n"
THEIRS = """from llama_cpp import Llama
def open_file(path): Llama(path, n_ctx=1024, n_threads=2, verbose=False).close()
"""
CLOCK = """import sys, time
open_file(sys.argv[1])
begin = time.perf_counter()
open_file(sys.argv[1])
print(time.perf_counter() - begin)
"""


def seconds(python: str, code: str, path: str) -> float:
    """What one process took. Raises CalledProcessError where it failed."""
    run = subprocess.run([python, "-c", code + CLOCK, path], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--peer", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print("| file | llmcli | llama.cpp | ratio |\n| --- | --- | --- | --- |")
    for path in given.files:
        rounds = [(seconds(sys.executable, OURS, path), seconds(given.peer, THEIRS, path)) for _ in range(given.rounds)]
        ours, theirs = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(f"| {path} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.1f} |", flush=True)


if __name__ == "__main__":
    main()
