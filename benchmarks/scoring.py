"""Scoring a text beside llama.cpp's own program and the recipe of the transformers documentation, in one run.

    python -m benchmarks.peers.prepare --engines llama_cpp,transformers --shapes gpt2
    python -m benchmarks.llama_perplexity TEXT_FILE --source LLAMA_CPP        # compiles llama-perplexity
    python -m benchmarks.scoring TEXT_FILE

Disjoint windows of 512 tokens of the text, the same ones for all, on the checkpoint of 124M random weights: llmcli four
windows at a time, transformers one after the other through the model's own loss, `llama-perplexity -c 512` four at a
time. Each is once a round in a new process, the order reversed every other round; what is timed begins when the model
is loaded and ids are there. llama-perplexity projects only the second half of each window, the others every position.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.peers import ROOT, WORK
from benchmarks.peers.measures import Passing
from benchmarks.peers.run import worker
from benchmarks.peers.worker import Rows
from llmcli import loading
from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.environment import environment, load_average, machine_name

SHAPE, WINDOW, TOGETHER = "gpt2", 512, 4
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # and llama.cpp's names of them
OURS, RECIPE, PROGRAM = "llmcli", "transformers", "llama-perplexity"
STAMP = r"(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) I "  # minutes, seconds, milliseconds, microseconds


def in_worker(work: Path, name: str, precision: str, rows: Rows, threads: int) -> dict[str, float]:
    """Seconds and nats of an engine that scores rows of ids. Raises `benchmarks.peers.run.Dead`."""
    with worker(work, name, threads) as process:
        process.call(load=[str(work / "models" / SHAPE), precision, threads])
        process.call(score=[row[:64] for row in rows[:TOGETHER]])
        parts = [process.call(score=rows[first : first + TOGETHER]) for first in range(0, len(rows), TOGETHER)]
    return {name: sum(part[key] for part in parts) for name, key in (("seconds", "seconds"), ("nats", "value"))}


def in_program(work: Path, precision: str, text: Path, windows: int, threads: int) -> dict[str, float]:
    """Seconds between the two lines of llama-perplexity that tell of its start and its end. Raises ValueError."""
    model = work / "models" / SHAPE / "llama_cpp" / f"{PRECISIONS[precision]}.gguf"
    command = [work / "perplexity" / PROGRAM, "-m", model, "-f", text, "-c", WINDOW, "--chunks", windows, "-t", threads]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    printed = done.stdout + done.stderr
    begin, end = (re.search(STAMP + line, printed) for line in ("perplexity: calculating perplexity", "Final estimate"))
    if begin is None or end is None or f"over {windows} chunks, n_ctx={WINDOW}" not in printed:
        raise ValueError(f"{PROGRAM} ended with {done.returncode} and other lines than expected: {printed[-400:]}")
    return {"seconds": seconds(end) - seconds(begin)}


def seconds(stamp: re.Match[str]) -> float:
    """The time that a line of llama.cpp's log begins with."""
    minutes, whole, milli, micro = (int(part) for part in stamp.groups())
    return 60 * minutes + whole + milli / 1e3 + micro / 1e6


def one_round(
    work: Path, text: Path, rows: Rows, threads: int, results: dict[str, dict[str, list[dict[str, float]]]], turn: int
) -> None:
    """Each contestant once in each precision, into its list."""
    order = [(precision, name) for precision in PRECISIONS for name in (OURS, RECIPE, PROGRAM)]
    for precision, name in order if turn % 2 == 0 else reversed(order):
        if name == PROGRAM:
            found = in_program(work, precision, text, len(rows), threads)
        else:
            found = in_worker(work, name, precision, rows, threads)
        results[precision][name].append(found)
        rate = len(rows) * WINDOW / found["seconds"]
        print(f"{turn + 1}: {precision} {name}: {rate:.0f} tokens/s", file=sys.stderr)


def limits(models: Path, ceilings: Ceilings) -> dict[str, float]:
    """Tokens per second at which the machine's matrix peak would do the arithmetic of every position."""
    test = Passing("score", TOGETHER, WINDOW, "SCORES", 1)
    return {name: test.limit(loading.load(models / name, dtype=name).model, ceilings) for name in PRECISIONS}


def main() -> None:
    """Measure and save after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, default=WORK, help="the work folder [%(default)s]")
    parser.add_argument("--windows", type=int, default=8, help="a multiple of four [%(default)s]")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    models, n = given.work / "models" / SHAPE, given.windows * WINDOW
    ids = loading.load(models / "float32").tokenizer.encode(given.text.read_text("utf-8"))
    if len(ids) < n or given.windows < TOGETHER or given.windows % TOGETHER:
        parser.error(f"expected a multiple of {TOGETHER} windows and a text of as many, got {len(ids)} tokens")
    rows = [ids[first : first + WINDOW] for first in range(0, n, WINDOW)]
    facts, ceilings = environment(), Ceilings()
    results: dict[str, dict[str, list[dict[str, float]]]] = {
        precision: {name: [] for name in (OURS, RECIPE, PROGRAM)} for precision in PRECISIONS
    }
    loads = []
    target = given.output / f"{machine_name(facts)}.scoring.json"
    for turn in range(given.rounds):
        loads.append(load_average())
        bounds = limits(models, ceilings)
        ceilings.measure_again()
        one_round(given.work, given.text, rows, given.threads, results, turn)
        document = {"schema": "llmcli/bench-scoring/1", "environment": facts, "shape": SHAPE, "window": WINDOW}
        document |= {"n_tokens": n, "rounds": turn + 1, "load_averages": loads, "results": results}
        document |= {"limits": bounds, "ceilings": ceilings.to_json()}
        target.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
