"""Measure what `prepare.py` prepared: every engine once a round, each time in a new process, the order reversed every
other round.

    python -m benchmarks.peers.run                                     # all, five rounds
    python -m benchmarks.peers.run --shapes gpt2 --rounds 1 --engines llmcli,llama_cpp --output /tmp/

Writes MACHINE.peers.SHAPE.json and .png after every round, so that a run that is broken off keeps its rounds, and
prints the tables. A process is started, loads, writes one token (time to first token), then takes the tests one by one:
a call to warm up, then calls until half a second is measured, every prompt new.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib  # noqa: F401 (that it is missing is better known before an hour of measuring)
import torch

from benchmarks.peers import ROOT, engine
from benchmarks.peers.prepare import options, python_of, reason_file
from benchmarks.peers.report import chart, goals_table, whole_table
from benchmarks.peers.worker import Rows
from llmcli import loading
from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.environment import environment, load_average, machine_name
from llmcli.benchmarking.model_speed import SpeedTest, limit_ns

N_GEN = 32
FIRST_PROMPT = 8
SAMPLE_S = 0.5
ANSWER_S = 240  # the longest that an answer may take
PRECISIONS = {"float32": None, "bfloat16": None, "int8": "int8", "int4": "int4"}  # what --quantize gets
IMPORT_TORCH = [sys.executable, "-c", "import torch; print()"]


class Dead(Exception):
    """A process that ended, hung or answered with an error; the message says which."""


class Worker:
    """A process that answers (`worker.py`), from `with` to its end."""

    def __init__(self, command: list[str | Path], environment: dict[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, os.environ | environment, log

    def __enter__(self) -> Worker:
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def call(self, **request: Any) -> dict[str, Any]:
        """One answer. Raises Dead when it is an error, or none in time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        watch = threading.Timer(ANSWER_S, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise Dead(f"ended with {self.process.wait()} instead of an answer within {ANSWER_S} s")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Dead(answer["error"])
        return answer

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def worker(work: Path, name: str, threads: int) -> Worker:
    """The process of a prepared engine. Raises Dead with the reason when it is not prepared."""
    python, why = python_of(work, name), reason_file(work, name)
    if why.exists() or not python.exists():
        raise Dead(why.read_text("utf-8") if why.exists() else "not prepared: run python -m benchmarks.peers.prepare")
    environment = {"OMP_NUM_THREADS": str(threads)} | getattr(engine(name), "ENVIRONMENT", {})
    return Worker([python, "-m", "benchmarks.peers.worker", name, "serve"], environment, work / f"{name}.log")


class Draws:
    """Prompts of random ids, never the same twice."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.random, self.vocab_size = random.Random(seed), vocab_size

    def __call__(self, batch: int, length: int) -> Rows:
        return [[self.random.randrange(self.vocab_size) for _ in range(length)] for _ in range(batch)]


def speed_tests(context: int, threads: int) -> list[SpeedTest]:
    """Those of prefill 512, decode at 32 and at 880, and decode of 8 rows that fit into the context."""
    decode = [SpeedTest(0, N_GEN, depth, batch, threads) for depth, batch in ((32, 1), (880, 1), (32, 8))]
    tests = [SpeedTest(512, 0, 0, 1, threads), *decode]
    return [test for test in tests if test.positions <= context]


def key(test: SpeedTest) -> str:
    """The name of a test in the document: `pp512`, `tg32 @ d880`, `tg32 @ d32 b8`."""
    return test.name + (f" b{test.n_batch}" if test.n_batch > 1 else "")


def sample(call: Callable[..., dict[str, Any]], test: SpeedTest, draws: Draws) -> float:
    """Tokens per second: over calls that last SAMPLE_S together, after one that is not counted."""
    length, n = test.n_prompt or test.n_depth, test.n_gen + 1
    call(generate=draws(test.n_batch, length), n=min(n, 2))
    seconds, tokens = 0.0, 0
    while seconds < SAMPLE_S:
        answer = call(generate=draws(test.n_batch, length), n=n)
        seconds += answer["rest_s" if test.n_gen else "first_s"]
        tokens += test.tokens
    return tokens / seconds


def turn(process: Worker, load: list[Any], tests: list[SpeedTest], draws: Draws, prompt: Rows) -> dict[str, Any]:
    """One process from start to end: time to first token, which one that was, speeds, memory. Raises Dead."""
    begin = time.perf_counter()
    with process:
        process.call(load=load)
        first = process.call(generate=prompt, n=1)
        seconds = time.perf_counter() - begin
        speeds = {key(test): sample(process.call, test, draws) for test in tests}
        last = process.call(generate=draws(1, FIRST_PROMPT), n=1)
    memory = {name: last[name] for name in ("rss", "peak_rss")}
    return {"first_token_s": seconds, "first_token": first["ids"][0][0], "speeds": speeds, **memory}


def contestants(names: list[str]) -> list[dict[str, Any]]:
    """One row of the document per engine and variant, without rounds."""
    return [
        {"engine": name, "variant": variant, "precision": precision, "packages": engine(name).PACKAGES[:1]}
        | {"error": None, "rounds": []}
        for name in names
        for variant, precision in engine(name).VARIANTS.items()
    ]


def reference_models(models: Path) -> dict[str, Any]:
    """llmcli's model in each precision, whose bytes and operations make the limits."""
    plain = {name: models / ("float32" if name == "float32" else "bfloat16") for name in PRECISIONS}
    return {name: loading.load(plain[name], quantize=how).model for name, how in PRECISIONS.items()}


def limits(loaded: dict[str, Any], tests: list[SpeedTest], ceilings: Ceilings) -> dict[str, dict[str, float]]:
    """Tokens per second that the machine allows, by precision and test (see `limit_ns`)."""
    return {
        precision: {key(test): 1e9 * test.tokens / limit_ns(model, test, ceilings) for test in tests}
        for precision, model in loaded.items()
    }


def import_torch() -> float:
    """Seconds of a process that imports torch and ends."""
    begin = time.perf_counter()
    subprocess.run(IMPORT_TORCH, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(
    work: Path, shape: str, names: list[str], threads: int, rounds: int, budget: float
) -> Iterator[dict[str, Any]]:
    """Run the rounds; yields the document after each; stops before a round that would not fit into the budget."""
    models = work / "models" / shape
    config = json.loads((models / "float32" / "config.json").read_text("utf-8"))
    tests, draws, ceilings = speed_tests(config["n_positions"], threads), Draws(config["vocab_size"]), Ceilings()
    loaded, facts, rows = reference_models(models), environment(), contestants(names)
    loads, imports, longest, begin = [], [], 0.0, time.perf_counter()
    for index in range(rounds):
        start = time.perf_counter()
        if index and start - begin + longest > budget:
            print(f"{shape}: stopped after {index} of {rounds} rounds: the next would not fit", file=sys.stderr)
            break
        loads.append(load_average())
        imports.append(import_torch())
        limits(loaded, tests, ceilings)  # looks at every ceiling that is needed
        ceilings.measure_again()
        prompt = draws(1, FIRST_PROMPT)
        for row in rows if index % 2 == 0 else reversed(rows):
            if row["error"] is None:
                try:
                    load = [str(models), row["variant"], threads]
                    done = turn(worker(work, row["engine"], threads), load, tests, draws, prompt)
                    row["rounds"].append({"round": index, **done})
                except Dead as error:
                    row["error"] = str(error)
            print(f"{shape} {index + 1}: {row['engine']} {row['variant']}: {row['error'] or 'done'}", file=sys.stderr)
        longest = max(longest, time.perf_counter() - start)
        document = {"schema": "llmcli/bench-peers/1", "shape": shape, "environment": facts, "interrupted": False}
        document |= {"rounds": index + 1, "load_averages": loads, "import_torch_s": imports, "contestants": rows}
        yield document | {"ceilings": ceilings.to_json(), "limits": limits(loaded, tests, ceilings)}


def main() -> None:
    """Measure each shape, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--time-budget", type=float, default=float("inf"), metavar="SECONDS", help="for each shape")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for shape in arguments.shapes.split(","):
        target = arguments.output / f"{machine_name(environment())}.peers.{shape}.json"
        sizes = (arguments.threads, arguments.rounds, arguments.time_budget)
        for document in measure(arguments.work, shape, arguments.engines.split(","), *sizes):
            target.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            chart(document, target.with_suffix(".png"))
        print(whole_table(document), goals_table([document]), sep="\n")


if __name__ == "__main__":
    main()
