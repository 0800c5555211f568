"""kill -9 at random instants, again and again, then to the end: the weights of a run that was never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import TEXT

KILLS = 20
# Imports the engine once and forks before torch has threads; a life ends a few steps after the first that it logs.
LIVES = """
import json, os, random, signal, sys, time
from pathlib import Path
from llmcli.training import checkpoint, finetuning, trainer
from llmcli.checkpoints import safetensors
from llmcli.cli import cli

whole, killed, log, output, kills = *map(json.loads, sys.argv[1:3]), *map(Path, sys.argv[3:5]), int(sys.argv[5])
draw = random.Random(0)

def begin(arguments):
    child = os.fork()
    if child == 0:
        try:
            cli.main(arguments)
        except SystemExit as leave:
            os._exit(leave.code or 0)
    return child

def lines():
    return log.read_bytes().count(b"\\n") if log.exists() else 0

for _ in range(kills):
    child, before = begin(killed), lines()
    wanted = draw.randrange(4)
    while lines() < before + wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(draw.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    for name in ("model.safetensors", checkpoint.STATE):
        if (output / name).exists():
            safetensors.open(output / name)
for arguments in (killed, whole):
    if code := os.waitstatus_to_exitcode(os.waitpid(begin(arguments), 0)[1]):
        sys.exit(code)
"""


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_killed_runs_end_with_the_same_weights(command: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    (tmp_path / "shape.json").write_text(json.dumps({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}))
    begun = {
        "train": ["--config", str(tmp_path / "shape.json"), "--vocab-size", "270"],
        "finetune": ["-m", str(tiny_gpt2), "--lora", "2", "-c", "16"],
    }[command]
    begun = [command, str(tmp_path / "text.txt"), *begun, "--iters", "80", "--batch-size", "2", "-t", "1", "-q"]
    log, output = tmp_path / "log.jsonl", tmp_path / "killed"
    whole = [*begun, "--output", str(tmp_path / "whole")]
    killed = [*begun, "--output", str(output), "--log", str(log), "--save-every", "1", "--resume", "auto"]
    done = subprocess.run(
        [sys.executable, "-c", LIVES, json.dumps(whole), json.dumps(killed), str(log), str(output), str(KILLS // 2)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "training.json").read_text())["step"] == 80
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
