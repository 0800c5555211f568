"""Operators beside torch's: the table of cases, the agreement check, ratios, shares and verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmcli.benchmarking import ceilings as ceilings_module
from llmcli.benchmarking import kernel_cases as cases_module
from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.kernel_cases import Case, Contestants, attention_decode, kernel_cases
from llmcli.benchmarking.kernel_speed import measure_kernel, summarize, tensors
from llmcli.commands.bench_kernels import OPERATORS
from llmcli.errors import GateFailed
from llmcli.nn.kv_cache import KVCache
from tests.benchmarking.clock import SimulatedClock

TRIAL = kernel_cases(divide=128)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ceilings, small caches."""
    monkeypatch.setattr(ceilings_module, "MATRIX_SIZE", 256)
    monkeypatch.setattr(ceilings_module, "stream_bytes", lambda: 1 << 20)
    monkeypatch.setattr(cases_module, "last_level_cache", lambda: 1 << 20)


def test_the_goals_are_those_that_were_set() -> None:
    goals = {(c.op, c.variant, c.dtype_name): (c.goal_ratio, c.goal_share) for c in kernel_cases()}
    assert goals["attention", "forward", "float32"] == (1.5, 0.70)
    assert goals["attention", "forward", "bfloat16"] == (2.5, 0.45)
    for dtype in ("float32", "bfloat16"):
        assert goals["attention", "forward + backward", dtype] == (1.5, None)
        assert goals["attention", "decode, cold", dtype] == (None, 0.85)
        assert goals["linear_cross_entropy", "forward + backward", dtype] == (1.3, None)
        assert goals["linear_logprobs", "log p", dtype] == (1.5, 0.60)
        assert goals["softmax", "into out=", dtype] == (1.5, 0.85)
        assert goals["softmax", "allocating", dtype] == (1.5, None)


def test_names_are_unique_and_operators_can_be_chosen() -> None:
    cases = kernel_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert tuple(dict.fromkeys(case.op for case in cases)) == OPERATORS
    assert {case.op for case in kernel_cases(["gelu", "softmax"])} == {"gelu", "softmax"}
    assert {case.dtype for case in kernel_cases(dtypes=[torch.float16])} == {torch.float16}


def test_a_trial_has_no_goals() -> None:
    assert all(case.goal_ratio is case.goal_share is None for case in TRIAL)


def test_amounts() -> None:
    cases = {case.name: case for case in kernel_cases()}
    forward = cases["attention forward B1 H12 D64 S1024 causal float32"]
    assert forward.amount == 4 * 1024 * 1024 * 12 * 64 // 2
    training = cases["attention forward + backward B1 H12 D64 S1024 causal float32"]
    assert training.amount == forward.amount * 3.5
    assert cases["attention decode, cold B1 H12 D64 T1 S8192 bfloat16"].amount == 2 * 8192 * 12 * 64 * 2
    assert cases["softmax into out= 12288×1024 float32"].amount == 2 * 12288 * 1024 * 4
    assert cases["add_layer_norm allocating 4096×768 bfloat16"].amount == 4 * 4096 * 768 * 2


@pytest.mark.parametrize("case", TRIAL, ids=lambda case: case.name)
def test_every_case_runs_and_agrees(case: Case) -> None:
    result = measure_kernel(case, Ceilings(rounds=1), rounds=6, warmup=0, minimum_ns=1)
    document = result.to_json()
    assert document["verdict"] is None
    assert document["ceiling_pct"]["median"] > 0
    assert {name: len(samples) for name, samples in document["samples_ns"].items()} == {
        "llmcli": 6,
        "torch": 6,
        "ceiling": 6,
    }


def test_a_cold_cache_sees_more_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four last-level caches pass between two looks at the same keys; hot looks at the same keys again."""
    seen: list[tuple[int, int]] = []

    def spy(self: KVCache, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        data, _ = self.reserve(1)
        seen.append((data.data_ptr(), data.nbytes))
        return q

    monkeypatch.setattr(KVCache, "attend", spy)
    contestants = attention_decode(128, torch.float32, cold=True)
    for _ in range(40):
        contestants.ours()
    first = seen[0][0]
    again = next(index for index, (address, _) in enumerate(seen[1:], 1) if address == first)
    assert sum(nbytes for _, nbytes in seen[1:again]) >= 4 << 20
    seen.clear()
    contestants = attention_decode(128, torch.float32, cold=False)
    for _ in range(3):
        contestants.ours()
    assert len({address for address, _ in seen}) == 1


def case_of(ours: object, theirs: object, clock: SimulatedClock, **goals: float) -> Case:
    """A case whose three contestants take 100, 200 and 50 ns per call."""

    def build() -> Contestants:
        def timed(result: object, nanoseconds: int) -> object:
            clock.now += nanoseconds
            return result

        return Contestants(lambda: timed(ours, 100), lambda: timed(theirs, 200), lambda: timed(None, 50), 1000)

    return Case("softmax", "test", "1×1", torch.float32, 800, "copy", build, **goals)


def test_rates_ratio_share_and_verdict() -> None:
    clock, x = SimulatedClock(), torch.ones(3)
    case = case_of(x, x, clock, goal_ratio=1.5, goal_share=0.3)
    result = measure_kernel(case, Ceilings(), rounds=6, minimum_ns=1, clock=clock)
    assert result.ours.median == 8.0  # 800 bytes in 100 ns: GB/s
    assert result.torch.median == 4.0
    assert result.ratio.median == 2.0
    assert result.ceiling == 20.0
    assert result.share.median == pytest.approx(0.4)
    assert result.verdict == "met"
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("goals", "word"),
    [
        ({}, ""),
        ({"goal_ratio": 2.5}, "below"),
        ({"goal_ratio": 1.5, "goal_share": 0.5}, "below"),
        ({"goal_ratio": 1.5}, "met"),
    ],
)
def test_the_worst_of_both_goals_counts(goals: dict[str, float], word: str) -> None:
    clock, x = SimulatedClock(), torch.ones(3)
    result = measure_kernel(case_of(x, x, clock, **goals), Ceilings(), rounds=6, minimum_ns=1, clock=clock)
    assert result.verdict == word


def test_an_interval_across_the_goal_is_inconclusive() -> None:
    case = replace(TRIAL[0], goal_ratio=1.5)
    samples = {"llmcli": [100.0] * 8, "torch": [120.0] * 4 + [180.0] * 4, "ceiling": [10.0] * 8}
    result = summarize(case, samples, ceiling_amount=10)
    assert result.verdict == "inconclusive"
    assert any(text.startswith("torch: ") for text in result.warnings)


@pytest.mark.parametrize(("budget", "rounds"), [(0, 6), (350 * 8, 8), (1e9, 20)])
def test_a_budget_ends_the_rounds_but_leaves_an_interval(budget: float, rounds: int) -> None:
    clock, x = SimulatedClock(), torch.ones(3)
    case = case_of(x, x, clock)
    calibration = 2 * 350
    limit = budget + calibration - 1
    result = measure_kernel(case, Ceilings(), rounds=20, warmup=0, minimum_ns=1, budget_ns=limit, clock=clock)
    assert result.ratio.n == rounds


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, 1.0, 1.01]), torch.tensor([1.0, 1.0, float("nan")])])
def test_a_wrong_result_has_no_speed(wrong: torch.Tensor) -> None:
    clock = SimulatedClock()
    with pytest.raises(GateFailed, match=r"differs from torch's by"):
        measure_kernel(case_of(wrong, torch.ones(3), clock), Ceilings(), rounds=1, clock=clock)


def test_tensors() -> None:
    x = torch.ones(1)
    assert tensors(x) == (x,)
    assert tensors([x, x]) == (x, x)
