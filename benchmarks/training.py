"""Trains nanoGPT's small character model by `llmcli train` and by nanoGPT, taking turns, and keeps what they took.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/training.py input.txt --nanogpt nanoGPT -o benchmarks/results/

Tiny Shakespeare by characters: 4 layers, 4 heads, width 128, context 64, batches of 12, 2,000 steps, no dropout; the
last tenth of the text is held out. nanoGPT runs the command of its README, which reports a validation loss of 1.88, by
the interpreter of this script; it estimates that loss on 20 random batches, llmcli takes the whole text. Wall times are
those of whole processes: start, reading, training, validation, checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from llmcli.benchmarking.environment import environment as facts
from llmcli.benchmarking.environment import load_average, machine_name
from llmcli.benchmarking.tables import figure, markdown

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 64}
TOKENS = 12 * 64  # of a step
GOAL = {"val_loss": 1.88, "wall_ratio": 0.4}
PEER = "nanoGPT"
PEER_FILES = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py")
Turn = dict[str, float]


def run(command: list[str], place: Path, threads: int) -> tuple[float, str]:
    """Seconds of a whole process, and what it printed. Raises CalledProcessError."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return time.perf_counter() - begin, done.stdout


def llmcli(text: str, dtype: str, iters: int, threads: int, lr: float) -> Turn:
    """One run of `llmcli train`, whose tokenizer is there before, as nanoGPT's ids are."""
    with tempfile.TemporaryDirectory() as folder:
        place, cut = Path(folder), int(0.9 * len(text))
        (place / "config.json").write_text(json.dumps(SHAPE))
        (place / "train.txt").write_text(text[:cut])
        (place / "val.txt").write_text(text[cut:])
        program = [sys.executable, "-m", "llmcli"]
        run([*program, "tokenizer", "train", "train.txt", "--characters", "--output", "letters"], place, threads)
        flags = {
            "data": "train.txt", "val": "val.txt", "tokenizer": "letters", "config": "config.json", "output": "run",
            "iters": iters, "eval-every": iters, "save-every": iters, "batch-size": 12, "warmup-steps": 100,
            "weight-decay": 0.1, "lr": lr, "min-lr": lr / 10, "dtype": dtype, "threads": threads,
        }  # fmt: skip
        flat = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        wall, out = run([*program, "train", *flat, "--json", "-q"], place, threads)
        log = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
        steps = [1e3 * TOKENS / line["tokens_per_second"] for line in log if "loss" in line]
        return {"wall_s": wall, "step_ms": median(steps), "val_loss": json.loads(out)["val_loss"]}


def nanogpt(text: str, checkout: Path, iters: int, threads: int) -> Turn:
    """One run of nanoGPT's `train.py` by the command of its README."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in PEER_FILES:
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copy(checkout / name, place / name)
        data = place / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        letters = sorted(set(text))
        number = {letter: place for place, letter in enumerate(letters)}
        ids, cut = np.array([number[letter] for letter in text], np.uint16), int(0.9 * len(text))
        ids[:cut].tofile(data / "train.bin")
        ids[cut:].tofile(data / "val.bin")
        meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": number}
        (data / "meta.pkl").write_bytes(pickle.dumps(meta))
        flags = {
            "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 1, "block_size": 64, "batch_size": 12,
            "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": iters, "lr_decay_iters": iters, "dropout": 0.0,
        }  # fmt: skip
        command = [sys.executable, "train.py", PEER_FILES[-1], *(f"--{name}={value}" for name, value in flags.items())]
        wall, out = run(command, place, threads)
        steps = [float(found) for found in re.findall(r"time (\S+)ms", out)]
        losses = [float(found) for found in re.findall(r"val loss (\S+)", out)]
        return {"wall_s": wall, "step_ms": median(steps), "val_loss": losses[-1]}


@dataclass(frozen=True)
class Row:
    """A contestant: medians over the rounds; the ratio is that of its wall time to nanoGPT's in the same round."""

    name: str
    precision: str
    loss: float
    step_ms: float
    walls: list[float]
    ratio: float | None
    met: bool


def figures(document: dict[str, Any]) -> Iterator[Row]:
    """Every contestant of a document, nanoGPT without a ratio."""
    theirs = next((row["rounds"] for row in document["contestants"] if row["name"] == PEER), [])
    goal = document["goal"]
    for row in document["contestants"]:
        turns, ratio = row["rounds"], None
        if row["name"] != PEER and theirs:
            ratio = median(mine["wall_s"] / peer["wall_s"] for mine, peer in zip(turns, theirs, strict=True))
        loss, walls = median(turn["val_loss"] for turn in turns), [turn["wall_s"] for turn in turns]
        met = ratio is not None and loss <= goal["val_loss"] and ratio <= goal["wall_ratio"]
        yield Row(row["name"], row["precision"], loss, median(turn["step_ms"] for turn in turns), walls, ratio, met)


def table(document: dict[str, Any]) -> str:
    """Every contestant, and whether llmcli reached the goal."""
    lines = []
    for row in figures(document):
        share = "–" if row.ratio is None else f"{100 * row.ratio:.0f} %"
        verdict = "–" if row.ratio is None else "met" if row.met else "missed"
        wall = f"{figure(median(row.walls))} ({figure(min(row.walls))}–{figure(max(row.walls))})"
        lines.append([row.name, row.precision, f"{row.loss:.3f}", figure(row.step_ms), wall, share, verdict])
    columns = ("", "precision", "validation loss", "step, ms", "wall, s (range)", f"of {PEER}'s wall", "goal")
    return markdown(columns, lines)


def main() -> None:
    """Take turns, the order reversed every other round; write after each round; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT; without it llmcli runs alone")
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("-r", "--rounds", type=int, default=2)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="a folder")
    parser.add_argument("--lr", type=float, default=3e-3, help="of llmcli; falls to a tenth of it")
    given = parser.parse_args()
    text = given.text.read_text(encoding="utf-8")
    turns: dict[tuple[str, str], Callable[[], Turn]] = {
        ("llmcli", dtype): lambda dtype=dtype: llmcli(text, dtype, given.iters, given.threads, given.lr)  # type: ignore[misc]
        for dtype in ("float32", "bfloat16")
    }
    if given.nanogpt:
        turns[PEER, "float32"] = lambda: nanogpt(text, given.nanogpt, given.iters, given.threads)
    document: dict[str, Any] = {"schema": "llmcli/bench-training/1", "text_bytes": given.text.stat().st_size}
    document |= {"shape": SHAPE, "iters": given.iters, "lr": given.lr, "goal": GOAL, "environment": facts()}
    rows = [{"name": name, "precision": precision, "rounds": []} for name, precision in turns]
    document |= {"load_averages": [], "contestants": rows}
    for index in range(given.rounds):
        document["load_averages"].append(load_average())
        for row in rows if index % 2 == 0 else reversed(rows):
            row["rounds"].append(turns[row["name"], row["precision"]]())
        if given.output:
            target = given.output / f"{machine_name(document['environment'])}.training.json"
            target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document), end="")


if __name__ == "__main__":
    main()
