"""Trains the small character model that nanoGPT's README has figures for, by `llmcli train`, and keeps what it took.

python benchmarks/training.py input.txt -o benchmarks/results/training.json

Tiny Shakespeare by characters: 4 layers, 4 heads, width 128, context 64, batches of 12, 2,000 steps, no dropout; the
last tenth of the text is held out. nanoGPT's README reports a validation loss of 1.88 for this on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmcli.benchmarking.environment import environment as facts
from llmcli.tokenizer import END_OF_TEXT

PUBLISHED = {"val_loss": 1.88, "source": "nanoGPT README, 'train_shakespeare_char' on a CPU"}
SHAPE = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 64}
FLAGS = ["--batch-size", "12", "--warmup-steps", "100", "--weight-decay", "0.1"]


def characters(text: str) -> Tokenizer:
    """A tokenizer with an entry for each character of the text, which is ASCII: byte-level, without merges."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = sorted(set("".join(part for part, _ in letters.pre_tokenize_str(text))))
    backend = Tokenizer(models.BPE({word: n for n, word in enumerate([END_OF_TEXT, *symbols])}, []))
    backend.pre_tokenizer = letters
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def train(text: str, iters: int, threads: int, lr: float) -> dict[str, Any]:
    """One run in a process of its own: the command's summary, and the wall time of the whole process in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place, cut = Path(folder), int(0.9 * len(text))
        characters(text).save(str(place / "tokenizer.json"))
        (place / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
        (place / "config.json").write_text(json.dumps(SHAPE))
        (place / "train.txt").write_text(text[:cut])
        (place / "val.txt").write_text(text[cut:])
        command = [
            sys.executable,
            "-m",
            "llmcli",
            "train",
            "--data",
            "train.txt",
            "--val",
            "val.txt",
            "--tokenizer",
            ".",
        ]
        command += ["--config", "config.json", "--iters", str(iters), "--output", "run", "--json", "-t", str(threads)]
        command += [
            "--eval-every",
            str(iters),
            "--save-every",
            str(iters),
            *FLAGS,
            "--lr",
            str(lr),
            "--min-lr",
            str(lr / 10),
        ]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        began = time.perf_counter()
        done = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, check=True)
        wall = time.perf_counter() - began
        log = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
        steps = sorted(64 * 12 / line["tokens_per_second"] for line in log if "loss" in line)
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary | {"wall_s": wall, "median_step_ms": 1e3 * steps[len(steps) // 2]}


def main() -> None:
    """Train, compare with what is published, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--lr", type=float, default=1e-3, help="falls to a tenth of it")
    given = parser.parse_args()
    found = train(given.text.read_text(encoding="utf-8"), given.iters, given.threads, given.lr)
    keys = ("val_loss", "val_tokens", "step", "n_tokens", "n_parameters", "wall_s", "median_step_ms", "recipe")
    document = {
        "schema": "llmcli/benchmark-training/1",
        "text_bytes": given.text.stat().st_size,
        "flags": FLAGS,
        "shape": SHAPE,
        "threads": given.threads,
        "llmcli": {key: found[key] for key in keys},
        "published": PUBLISHED,
        "environment": facts(),
    }
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
