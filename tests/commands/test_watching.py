"""What one sees of a run while it goes on: tokenising, the loss, tokens per second, the share of the matrix peak."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmcli.benchmarking import ceilings
from llmcli.commands import progress
from llmcli.commands.watching import Speed
from llmcli.training.trainer import Step
from tests.conftest import Result
from tests.tiny import TEXT


def trainer(flops: float | None, *, size: int = 1, leads: bool = True) -> Any:
    team = SimpleNamespace(size=size, leads=leads)
    recipe = SimpleNamespace(dtype="bfloat16")
    return SimpleNamespace(flops_per_token=flops, team=team, recipe=recipe, device=torch.device("cpu"))


def test_the_share_of_the_matrix_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ceilings, "matrix_rate", lambda *what: asked.append(what) or 500.0)  # GFLOP/s
    step = Step(1, 2.5, 1e-3, 1.0, 1000.0)
    speed = Speed(trainer(1e8))
    assert speed(step) == speed(step) == "loss 2.500, 1000 tokens/s, 20 % of the matrix peak"
    assert asked == [("bfloat16", torch.device("cpu"))]  # once
    assert Speed(trainer(1e8, size=2))(step).endswith("10 % of the matrix peak")
    assert Speed(trainer(None))(step) == Speed(trainer(1e8, leads=False))(step) == "loss 2.500, 1000 tokens/s"


def test_lines_of_a_run(invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    (tmp_path / "text.txt").write_text(TEXT * 3)
    done = invoke("train text.txt --preset gpt2-nano --vocab-size 270 -c 16 --iters 2 --batch-size 2 --output run")
    assert done.code == 0, done.err
    assert "tokenising: 100 %" in done.err
    line = r"training: 50 %, 1/2 steps loss \d\.\d{3}, \d+ tokens/s, \d+ % of the matrix peak"
    assert re.search(line, done.err), done.err
