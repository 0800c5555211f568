"""`train` and `finetune` under torchrun: two processes on one machine, and the losses and weights of one alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from llmcli.checkpoints import sharded
from llmcli.cli import cli
from tests.tiny import TEXT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
# Runs one command line after the other, since starting torch costs more than all of them. Where there is a signal, the
# second process gets it after the fifth step.
COMMANDS = """
import json, os, signal, sys
from pathlib import Path
import torch
from llmcli.cli import cli
from llmcli.training.trainer import Trainer

one_step = Trainer.step

def step(trainer):
    report = one_step(trainer)
    if report.step == 5 and wanted and os.environ["RANK"] == "1":
        os.kill(os.getpid(), wanted)
    return report

Trainer.step = step
codes = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
torch.distributed.init_process_group("gloo")  # once; torchrun's store keeps the addresses of the first time
for arguments, wanted in json.loads(Path(sys.argv[1]).read_text()):
    torch.distributed.barrier()  # as processes that start anew find all that the last ones wrote
    try:
        cli.main(arguments)
    except SystemExit as leave:
        codes.append(leave.code)
    Path(sys.argv[1] + os.environ["RANK"]).write_text(json.dumps(codes))
"""


class Runs:
    """Command lines that end with the same weights, and where they write."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        (folder / "text.txt").write_text((TEXT + "\n\n") * 6)
        (folder / "shape.json").write_text(json.dumps(SHAPE))
        self.environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def train(self, name: str, *flags: str) -> list[str]:
        """Steps of four batches of two rows, each a shard of its own, with a checkpoint after every fourth."""
        begun = ["--config", str(self.folder / "shape.json"), "--vocab-size", "300", "--iters", "8"]
        sizes = ["--batch-size", "2", "--grad-accum", "4", "--warmup-steps", "1", "--eval-every", "4"]
        return ["train", *begun, *sizes, "--save-every", "4", "--resume", "auto", *self._places(name), *flags]

    def finetune(self, name: str, *flags: str) -> list[str]:
        """Adapters on a tiny model."""
        sizes = ["--lora", "2", "-c", "16", "--iters", "2", "--batch-size", "4"]
        return ["finetune", "-m", str(self.model), *sizes, *self._places(name), *flags]

    def log(self, name: str) -> list[dict[str, Any]]:
        """The lines of a run's log."""
        file = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """What a run made."""
        weights: dict[str, torch.Tensor] = load_file(self.folder / name / "model.safetensors")
        return weights

    def alone(self, arguments: list[str]) -> None:
        """Run in this process."""
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.stderr

    def together(self, *lines: tuple[list[str], int]) -> tuple[list[list[int]], str, str]:
        """The exit codes in both processes, stdout and stderr of two processes of torchrun, one of which is killed."""
        (self.folder / "commands.py").write_text(COMMANDS)
        file = self.folder / "commands.json"
        file.write_text(json.dumps(lines))
        done = subprocess.run(
            [*TORCHRUN, str(self.folder / "commands.py"), str(file)],
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment,
        )
        assert done.returncode == 1, done.stderr
        return [json.loads(Path(f"{file}{rank}").read_text()) for rank in range(2)], done.stdout, done.stderr

    def _places(self, name: str) -> list[str]:
        data = ["--data", str(self.folder / "text.txt"), "--val-fraction", "0.1", "-t", "1"]
        return [*data, "--output", str(self.folder / name), "--log", str(self.folder / f"{name}.jsonl")]


@pytest.mark.slow
def test_two_processes_are_one(tiny_gpt2: Path, tmp_path: Path) -> None:
    runs = Runs(tmp_path, tiny_gpt2)
    full = ("--sharding", "full")
    runs.alone(runs.train("one"))
    runs.alone(runs.finetune("tuned"))
    codes, out, err = runs.together(
        (runs.train("none"), 0),
        (runs.train("full", *full, "--sample-every", "8"), 0),
        (runs.train("changed"), signal.SIGINT),
        (runs.train("changed", *full), 0),
        (runs.finetune("tuned-full", *full), 0),
        (runs.train("odd", "--batch-size", "1", "--grad-accum", "3"), 0),
        (runs.train("killed", *full), signal.SIGKILL),
    )
    assert "stopped after step 5 of 8" in err
    assert codes[0][:6] == codes[1] == [0, 0, 130, 0, 0, 2]
    assert out.count(" steps, ") == 5
    assert "one is lost; the last checkpoint is intact" in err or "closing signal SIGTERM" in err
    assert "to be a multiple of the 2 processes, got 3 rows in a step" in err
    assert not (tmp_path / "odd").exists()
    assert len(sharded.found(tmp_path / "killed")) == 1
    runs.alone(runs.train("killed"))
    for name in ("none", "full", "killed", "changed"):
        steps, expected = ({line["step"]: line for line in runs.log(run) if "loss" in line} for run in (name, "one"))
        assert list(steps) == list(expected)
        for step, line in steps.items():
            assert line["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5)
            assert line["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-3)
    validations = [[line["val_loss"] for line in runs.log(name) if "val_loss" in line] for name in ("one", "full")]
    assert validations[1] == pytest.approx(validations[0], rel=1e-5)
    for expected_name, names in {
        "one": ("none", "full", "killed", "changed"),
        "tuned": ("tuned-full",),
    }.items():
        wanted = runs.weights(expected_name)
        for name in names:
            found = runs.weights(name)
            assert list(found) == list(wanted)
            for key, weight in wanted.items():
                torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-4)
    files = {path.name for path in (tmp_path / "full").iterdir()}
    assert "training.safetensors" not in files
    assert ".partial" not in files
    assert len(sharded.found(tmp_path / "full")) == 1
    assert (tmp_path / "killed" / "training.safetensors").exists()
    assert not sharded.found(tmp_path / "killed")


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--data - --output x", "only one can read"), ("--data a --output x --verify-resume 2", "expected one process")],
)
def test_what_only_one_process_can_do(flags: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli, ["train", *flags.split()])
    assert result.exit_code == 2
    assert message in result.stderr


def test_one_process_has_nothing_to_shard(tmp_path: Path, tiny_gpt2: Path) -> None:
    runs = Runs(tmp_path, tiny_gpt2)
    result = CliRunner().invoke(cli, runs.train("x", "--sharding", "full"))
    assert result.exit_code == 2
    assert "start it with torchrun" in result.stderr
    assert not (tmp_path / "x").exists()
