"""Measure what `prepare.py` prepared: every engine once a round, each time in a new process, the order reversed every
other round.

    python -m benchmarks.peers.run                                     # all, five rounds
    python -m benchmarks.peers.run --shapes gpt2 --rounds 1 --engines llmcli,llama_cpp --output .

Writes MACHINE.peers.SHAPE.json and .png after every round, so that a run that is broken off keeps its rounds, and
prints the tables. A process is started, loads, writes one token (time to first token), then is measured in one thing
after the other (`measures.py`), each between two looks at what the machine allows (`present.py`). Other kinds than the
default go to MACHINE.peers.SHAPE.KINDS.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib  # noqa: F401 (that it is missing is better known before an hour of measuring)
import torch

from benchmarks.peers import ROOT, engine
from benchmarks.peers.measures import Draws, Measure, measures, sample
from benchmarks.peers.prepare import options, python_of, reads, reason_file
from benchmarks.peers.present import Present, rest
from benchmarks.peers.report import chart, goals_table, whole_table
from benchmarks.peers.worker import Rows
from llmcli import loading
from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.environment import environment, load_average, machine_name

KINDS = "generate,score"
FIRST_PROMPT = 8
Abilities = dict[str, Any]  # the names of an engine's file
Look = Callable[[Measure, int], float]  # at what the machine allows, once the process of that id rests
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


def worker(work: Path, name: str, threads: int, *, trains: bool) -> Worker:
    """The process of a prepared engine. Raises Dead with the reason when it is not prepared."""
    python, why = python_of(work, name), reason_file(work, name)
    if why.exists() or not python.exists():
        raise Dead(why.read_text("utf-8") if why.exists() else "not prepared: run python -m benchmarks.peers.prepare")
    file, environment = engine(name), {"OMP_NUM_THREADS": str(threads)}
    environment |= getattr(file, "ENVIRONMENT", {}) | (getattr(file, "TRAINING", {}) if trains else {})
    return Worker([python, "-m", "benchmarks.peers.worker", name, "serve"], environment, work / f"{name}.log")


def turn(
    process: Worker, load: list[Any], chosen: list[Measure], draws: Draws, prompt: Rows | None, look: Look
) -> dict[str, Any]:
    """One process from start to end: time to first token, which one that was, speeds and limits, memory. Raises Dead.

    Without a prompt there is no first token.
    """
    begin, seconds, token = time.perf_counter(), None, None
    with process:
        process.call(load=load)
        if prompt is not None:
            token = process.call(generate=prompt, n=1)["ids"][0][0]
            seconds = time.perf_counter() - begin
        pid = process.process.pid
        samples = {one.name: sample(one, process.call, draws, partial(look, one, pid)) for one in chosen}
        memory = process.call(memory=True)
    speeds, allowed = ({name: pair[index] for name, pair in samples.items()} for index in (0, 1))
    found = {"first_token_s": seconds, "first_token": token, "speeds": speeds, "limits": allowed, **memory}
    return found | {"turn_s": time.perf_counter() - begin}


def contestants(names: list[str], chosen: list[Measure]) -> list[dict[str, Any]]:
    """One row of the document per engine and variant that can do any of it, without rounds."""
    return [
        {"engine": name, "variant": variant, "precision": precision, "packages": engine(name).PACKAGES[:1]}
        | {"error": None, "rounds": []}
        for name in names
        for variant, precision in engine(name).VARIANTS.items()
        if able(name, variant, chosen)
    ]


def abilities(name: str) -> Abilities:
    """What an engine's file says that it can do."""
    file = engine(name)
    can = {"GENERATES": tuple(file.VARIANTS)} | vars(file)
    return {"READS": can["GENERATES"]} | can


def able(name: str, variant: str, chosen: list[Measure]) -> list[Measure]:
    """What of it an engine can do in a variant."""
    can = abilities(name)
    return [one for one in chosen if variant in can.get(one.variants, ())]


def reference_models(models: Path) -> dict[str, Any]:
    """llmcli's model in each precision, whose bytes and operations make the limits."""
    plain = {name: models / ("float32" if name == "float32" else "bfloat16") for name in PRECISIONS}
    return {name: loading.load(plain[name], quantize=how).model for name, how in PRECISIONS.items()}


def limits(loaded: dict[str, Any], chosen: list[Measure], ceilings: Ceilings) -> dict[str, dict[str, float]]:
    """Tokens per second that the machine allows, by precision and measure."""
    return {precision: {one.name: one.limit(model, ceilings) for one in chosen} for precision, model in loaded.items()}


def look(present: Present, model: Any, one: Measure, pid: int) -> float:
    """Tokens per second that the machine allows now, while a process rests."""
    rest(pid)
    return present.look(one, model)


def import_torch() -> float:
    """Seconds of a process that imports torch and ends."""
    begin = time.perf_counter()
    subprocess.run(IMPORT_TORCH, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(
    work: Path, shape: str, names: list[str], kinds: list[str], threads: int, rounds: int, budget: float
) -> Iterator[dict[str, Any]]:
    """Run the rounds; yields the document after each; stops before a round that would not fit into the budget."""
    models = work / "models" / shape
    config = json.loads((models / "float32" / "config.json").read_text("utf-8"))
    context = config.get("n_positions") or config["max_position_embeddings"]
    chosen, draws = measures(kinds, context, threads), Draws(config["vocab_size"])
    rows = contestants([name for name in names if reads(name, models)], chosen)
    loaded, ceilings, facts = reference_models(models), Ceilings(), environment()
    present = Present(ceilings)
    loads, imports, longest, begin = [], [], 0.0, time.perf_counter()
    for index in range(rounds):
        start = time.perf_counter()
        if index and start - begin + longest > budget:
            print(f"{shape}: stopped after {index} of {rounds} rounds: the next would not fit", file=sys.stderr)
            break
        loads.append(load_average())
        imports.append(import_torch())
        limits(loaded, chosen, ceilings)  # looks at every ceiling that is needed
        ceilings.measure_again()
        prompt = draws(1, FIRST_PROMPT)
        for row in rows if index % 2 == 0 else reversed(rows):
            if row["error"] is None:
                try:
                    process = worker(work, row["engine"], threads, trains="train" in kinds)
                    load = [str(models), row["variant"], threads]
                    first = prompt if row["variant"] in abilities(row["engine"])["GENERATES"] else None
                    can = able(row["engine"], row["variant"], chosen)
                    done = turn(process, load, can, draws, first, partial(look, present, loaded[row["precision"]]))
                    row["rounds"].append({"round": index, **done})
                except Dead as error:
                    row["error"] = str(error)
            print(f"{shape} {index + 1}: {row['engine']} {row['variant']}: {row['error'] or 'done'}", file=sys.stderr)
        longest = max(longest, time.perf_counter() - start)
        document = {"schema": "llmcli/bench-peers/1", "shape": shape, "environment": facts, "interrupted": False}
        document |= {"rounds": index + 1, "load_averages": loads, "import_torch_s": imports, "contestants": rows}
        yield document | {"ceilings": ceilings.to_json(), "limits": limits(loaded, chosen, ceilings)}


def main() -> None:
    """Measure each shape, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=KINDS, help="of generate, score, train [%(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--time-budget", type=float, default=float("inf"), metavar="SECONDS", help="for each shape")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for shape in arguments.shapes.split(","):
        only = "" if arguments.kinds == KINDS else "." + arguments.kinds.replace(",", "-")
        target = arguments.output / f"{machine_name(environment())}.peers.{shape}{only}.json"
        what = (arguments.engines.split(","), arguments.kinds.split(","))
        sizes = (arguments.threads, arguments.rounds, arguments.time_budget)
        for document in measure(arguments.work, shape, *what, *sizes):
            target.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            chart(document, target.with_suffix(".png"))
        print(whole_table(document), goals_table([document]), sep="\n")


if __name__ == "__main__":
    main()
