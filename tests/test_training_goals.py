"""The goals of training: the scripts that measure them on tiny models, and the table that holds them."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def goals(scripts: Any) -> Any:
    return scripts("training_goals")


def cells(rows: Any) -> list[list[str]]:
    return [row[3:] for row in rows]


def test_a_step_beside_others(goals: Any) -> None:
    def runs(engine: str, speed: float) -> dict[str, Any]:
        rounds = [{"round": 0, "speeds": {"train 4x64": speed}}]
        return {"engine": engine, "variant": "float32", "precision": "float32", "rounds": rounds}

    limits = {"float32": {"train 4x64": 600.0}, "bfloat16": {}, "int8": {}, "int4": {}}
    contestants = [runs("llmcli", 300.0), runs("transformers", 200.0), runs("llm_c", 100.0)]
    document = {"shape": "gpt2", "limits": limits, "contestants": contestants}
    assert cells(goals.step_rows(document)) == [
        ["≥ 1.4×", "1.50× (300 tokens/s beside 200)", "met"],
        ["≥ 1.5×", "3.00× (300 tokens/s beside 100)", "met"],
    ]
    contestants[1] = runs("transformers", 250.0)
    assert cells(goals.step_rows(document))[0] == ["≥ 1.4×", "1.20× (300 tokens/s beside 250)", "missed"]


def test_only_operators_of_training(goals: Any) -> None:
    row = {
        "op": "attention", "variant": "forward + backward", "shape": "S8", "dtype": "float32", "goal_ratio": 1.5,
        "ratio": {"median": 1.4, "ci_low": 1.3, "ci_high": 1.45}, "verdict": "below",
    }  # fmt: skip
    others = [row | {"op": "softmax"}, row | {"variant": "forward"}, row | {"goal_ratio": None}]
    assert cells(goals.operator_rows({"results": [row, *others]})) == [["≥ 1.5×", "1.40× (1.30–1.45)", "missed"]]


@pytest.mark.parametrize(
    ("accuracy", "minutes", "word"), [(0.8, 14.9, "met"), (0.79, 3, "missed"), (0.9, 15, "missed")]
)
def test_sentiment(goals: Any, accuracy: float, minutes: float, word: str) -> None:
    document = {
        "figures": {"accuracy": accuracy}, "minutes": minutes, "n": 872, "recipe": {"dtype": "bfloat16"},
        "goal": {"accuracy": 0.8, "minutes": 15}, "load_averages": [[1.0, 0, 0], [2.0, 0, 0]],
    }  # fmt: skip
    (row,) = cells(goals.sentiment_rows(document))
    assert row[2] == word
    assert row[1].startswith(f"{100 * accuracy:.1f} % of 872")


@pytest.mark.parametrize(("before", "word"), [(1.5, "met"), (1.4, "missed")])
def test_versions(goals: Any, before: float, word: str) -> None:
    versions = {"now": {"bits_per_byte": 1.4}, "before": {"bits_per_byte": before}}
    assert cells(goals.version_rows({"versions": versions}))[0][2] == word


@pytest.mark.parametrize(("ours", "word"), [(99, "met"), (101, "missed")])
def test_memory(goals: Any, ours: int, word: str) -> None:
    peaks = {"float32": {"llmcli": [ours << 20] * 3, "torch": [1000 << 20] * 3}}
    assert cells(goals.memory_rows({"goal": 0.1, "peak_bytes": peaks}))[0][2] == word


def test_the_memory_of_a_loss_grows_with_its_logits(scripts: Any) -> None:
    """1,024 tokens and 16,384 entries: torch holds the logits and their gradient, 64 MiB each."""
    code = "from benchmarks import loss_memory as m; print(m.added('torch', 'float32', (1024, 16, 16384)))"
    here = {**os.environ, "PYTHONSAFEPATH": ""}  # benchmarks/ is no part of the package
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd=ROOT, env=here)
    assert 120 << 20 < int(done.stdout) < 300 << 20


def test_versions_are_those_of_git(
    scripts: Any, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_model, asked = scripts("embedded_model"), []

    def git(*command: str) -> bytes:
        asked.append(command)
        if command[0] == "log":
            return b"new\nold\nolder\n"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as files:
            files.add(tiny_gpt2, embedded_model.MODEL)
        return packed.getvalue()

    monkeypatch.setattr(embedded_model, "git", git)
    (tmp_path / "book.txt").write_text("The sea was calm and the boy was far. " * 200)
    found = embedded_model.measure(tmp_path, threads=1)
    assert [command[1] for command in asked[1:]] == ["new", "old"]
    assert found["versions"]["now"]["bits_per_byte"] == found["versions"]["before"]["bits_per_byte"] > 0
    assert found["versions"]["now"]["n_bytes"] < 38 * 200 * 0.03
