"""Process start to first byte of `llmcli generate`, beside `python -c "import torch"`, in alternating order.

    python benchmarks/start.py -o benchmarks/results/

Each round starts both processes once; the files are in the page cache after the warm-up round. The figure is the
difference of the two times of a round, so that slow spells of the machine cancel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from llmcli.benchmarking.environment import environment, machine_name
from llmcli.benchmarking.kernel_speed import estimate_json
from llmcli.benchmarking.statistics import estimate
from llmcli.benchmarking.tables import start_verdict

GENERATE = [sys.executable, "-m", "llmcli", "generate", "Once upon a time"]
IMPORT = [sys.executable, "-c", "import torch; print()"]


def first_byte(command: list[str]) -> float:
    """Seconds from starting the process to the first byte on its stdout. Raises CalledProcessError when none comes."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        byte = process.stdout.read(1)
        elapsed = time.perf_counter() - begin
        process.stdout.read()
    if not byte or process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return elapsed


def measure(rounds: int) -> dict[str, object]:
    """The document: both medians, the difference with its interval, the samples."""
    samples: dict[str, list[float]] = {"generate": [], "import_torch": []}
    order = [("generate", GENERATE), ("import_torch", IMPORT)]
    for index in range(-1, rounds):
        for name, command in order if index % 2 else reversed(order):
            seconds = first_byte(command)
            if index >= 0:
                samples[name].append(seconds)
    extra = estimate([a - b for a, b in zip(samples["generate"], samples["import_torch"], strict=True)])
    document: dict[str, object] = {
        "schema": "llmcli/bench-start/1",
        "generate_s": round(estimate(samples["generate"]).median, 4),
        "import_torch_s": round(estimate(samples["import_torch"]).median, 4),
        "difference_s": estimate_json(extra),
        "goal_difference_s": 0.5,
        "samples_s": {name: [round(x, 4) for x in values] for name, values in samples.items()},
        "environment": environment(),
    }
    return document | {"verdict": start_verdict(document)}


def main() -> None:
    """Measure, then print the document or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path, help="a file, or a folder that gets <machine>.start.json")
    arguments = parser.parse_args()
    document = measure(arguments.rounds)
    text = json.dumps(document, indent=2) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
        return
    target = arguments.output
    if target.is_dir():
        target /= f"{machine_name(environment())}.start.json"
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
