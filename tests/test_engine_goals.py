"""The goals of the CPU engine beside its speed: no cliff between one row and many, memory, what is outside kernels."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # benchmarks/ is no part of the package
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_a_cliff_is_found_whatever_the_machine_did_meanwhile(scripts: Any) -> None:
    rows = scripts("linear_rows")
    speeds = {str(n): [1000.0 * n, 10.0 * n, 500.0 * n] for n in rows.ROWS}  # rounds of a machine that comes and goes
    assert rows.worst(speeds) == (pytest.approx(49 / 48), 49)
    speeds["33"] = [0.8 * speed for speed in speeds["32"]]
    assert rows.worst(speeds) == (pytest.approx(0.8), 33)
    document = {"goal": 0.9, "results": {"int8": {"rows_per_s": speeds, "limits": dict.fromkeys(speeds, 64000.0)}}}
    (line,) = rows.rows(document)
    assert line[-4:] == ["32.0 (50 %)", "0.80 at 33", "≥ 0.9", "missed"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_layers_are_more_than_a_cache_holds(scripts: Any, precision: str) -> None:
    rows = scripts("linear_rows")
    stack = rows.layers(precision, 20 << 20)
    assert 20 << 20 <= sum(layer.bytes_read for layer in stack) < 30 << 20
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert stack[0](torch.ones(3, rows.INPUTS, dtype=dtype)).shape == (3, rows.OUTPUTS)


@pytest.mark.parametrize(("held", "peak", "word"), [(445, 110, "met"), (455, 110, "missed"), (445, 130, "missed")])
def test_memory(scripts: Any, held: int, peak: int, word: str) -> None:
    memory = scripts("loading_memory")
    one = {"weights": 150, "cache": 50, "held": held, "loaded": 100, "peak": peak}
    found = [{name: megabytes * 10**6 for name, megabytes in one.items()}] * 3
    (line,) = memory.rows({"goal": memory.GOAL, "results": {"int8": found}})
    assert line == ["int8", "150", "50.0", str(held), "≤ 450", str(peak), "≤ 120", word]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_process_counts_its_weights_and_its_cache(scripts: Any, precision: str, tiny_gpt2: Path) -> None:
    found = scripts("loading_memory").in_process(tiny_gpt2, precision, 1)
    assert 0 < found["weights"] < found["held"]
    assert found["cache"] > 0
    assert 0 < found["loaded"] <= min(found["peak"], found["held"])


@pytest.mark.parametrize(("outside", "word"), [(3.0, "met"), (5.0, "missed")])
def test_what_is_outside_kernels(scripts: Any, outside: float, word: str) -> None:
    loop = scripts("decoding_loop")
    found = {"step_us": 100.0, "outside_us": outside, "dispatch_us": 1.0}
    (line,) = loop.rows({"goal": {"gpt2": 0.05}, "results": {"gpt2": {"int8": found}}})
    assert line[-3:] == [f"{outside + 1:.1f} %", "≤ 5 %", word]


def test_time_outside_operators_is_part_of_a_step(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = scripts("decoding_loop")
    monkeypatch.setattr(loop, "ROUNDS", 1)
    step, inside = loop.timed(loop.narrow(2))
    assert 0 < inside < step
