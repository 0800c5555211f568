"""Verdicts on simulated machines whose noise has heavy tails, slow spells and drift: how often each is right."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmcli.benchmarking.comparison import overall
from llmcli.benchmarking.verdicts import LOOKS, MINIMUM_ROUNDS, RISK, Judgement, Trial, ratio_of_medians

RUNS = 200
QUIET = {"noise": 0.01, "outliers": 0.05, "spells": 0.1, "drift": 0.002}
NOISY = {"noise": 0.03, "outliers": 0.1, "spells": 0.1, "drift": 0.01}
LOADED = {"noise": 0.3, "outliers": 0.3, "spells": 0.5, "drift": 0.1}


class Machine:
    """Times of 0.3 s, B's longer by `delay`, on a clock that only they move.

    Student's t with 3 degrees of freedom as noise, outliers of half a sample more, spells that slow everything for some
    fifty samples, and a wandering speed.
    """

    def __init__(self, seed: int, *, delay: float, noise: float, outliers: float, spells: float, drift: float) -> None:
        self.random = np.random.default_rng(seed)
        self.delay, self.noise, self.outliers, self.spells, self.drift = delay, noise, outliers, spells, drift
        self.now, self.wander, self.slow = 0.0, 0.0, False

    def sample(self, side: int, test: str) -> float:
        self.wander = 0.95 * self.wander + self.drift * self.random.standard_normal()
        self.slow ^= bool(self.random.random() < 0.02)
        log = self.noise * float(np.clip(self.random.standard_t(3), -5, 5)) + self.wander + self.spells * self.slow
        time = 3e8 * (1 + self.delay * side) * np.exp(log)
        if self.random.random() < self.outliers:
            time *= 1 + self.random.exponential(0.5)
        self.now += time
        return float(time)


def run(seed: int, delay: float, tolerance: float = 0.025, **machine: float) -> Judgement[str]:
    """The judgement of one trial of a minute."""
    simulated = Machine(seed, delay=delay, **machine)
    trial = Trial(
        ["x"], simulated.sample, budget_ns=60e9, tolerance=tolerance, clock=lambda: simulated.now, resamples=400
    )
    spent = list(trial.run())
    assert spent[-1] <= 66e9
    return trial.judgements["x"]


def count(delay: float, machine: dict[str, float], tolerance: float = 0.025) -> Counter[str]:
    """How often each overall verdict came."""
    return Counter(overall([run(seed, delay, tolerance, **machine).verdict]) for seed in range(RUNS))


def test_a_against_itself_passes() -> None:
    assert count(0, QUIET)["pass"] >= 0.95 * RUNS


def test_a_delay_of_5_percent_is_found() -> None:
    assert count(0.05, QUIET)["regression"] >= 0.95 * RUNS


def test_a_machine_under_load_is_inconclusive() -> None:
    for delay, wrong in ((0, "regression"), (0.05, "pass")):
        verdicts = count(delay, LOADED)
        assert verdicts["inconclusive"] >= 0.85 * RUNS
        assert verdicts[wrong] <= RISK * RUNS


@pytest.mark.parametrize("machine", [QUIET, NOISY])
def test_a_noisy_machine_does_not_guess(machine: dict[str, float]) -> None:
    assert count(0, machine)["regression"] == 0
    assert count(0.05, machine)["pass"] <= 0.01 * RUNS


@pytest.mark.parametrize("machine", [QUIET, NOISY])
def test_looking_often_does_not_err_more_often(machine: dict[str, float]) -> None:
    # The loss is exactly the tolerated one: every decision is a wrong one for somebody, and looks are many.
    verdicts = count(1 / 0.975 - 1, machine)
    assert verdicts["pass"] + verdicts["regression"] <= 2 * RISK * RUNS


def test_the_smallest_slowdown_is_one_that_is_found() -> None:
    stated = [run(seed, 0, **NOISY).smallest_slowdown or 1.0 for seed in range(20)]
    assert count(1.5 * float(np.median(stated)), NOISY)["regression"] >= 0.8 * RUNS
    quiet = [run(seed, 0, **QUIET).smallest_slowdown or 1.0 for seed in range(20)]
    assert 0.025 < np.median(quiet) < np.median(stated)


def test_sampling_ends_when_every_test_is_decided() -> None:
    now = 0.0
    taken: list[tuple[int, str]] = []

    def sample(side: int, test: str) -> float:
        nonlocal now
        taken.append((side, test))
        now += 1e8
        return 1e8 * (1 + 0.2 * side * (test == "slow")) * (1 + len(taken) % 7 / 1e4)

    trial = Trial(["slow", "same"], sample, budget_ns=100e9, tolerance=0.05, clock=lambda: now)
    spent = list(trial.run())
    assert {test: j.verdict for test, j in trial.judgements.items()} == {"slow": "slower", "same": "no slower"}
    assert spent[-1] < 20e9
    assert [side for side, test in taken if test == "same"][:8] == [0, 1, 1, 0, 1, 0, 0, 1]
    # Both were decided at the look at an eighth of the time, whose risk is that of the time since a sixteenth.
    assert trial.judgements["slow"].level == pytest.approx(1 - RISK / 16 * (1 + 1 / 2) / 2)
    document = trial.to_json("slow")
    assert document["ratio"] == pytest.approx(1 / 1.2, rel=1e-2)
    assert document["low"] <= document["ratio"] <= document["high"]
    assert [len(side) for side in document["samples_ns"]] == [document["rounds"]] * 2


def test_looks_share_the_risk_by_time() -> None:
    now, risks = 0.0, []

    def sample(side: int, test: str) -> float:
        nonlocal now
        now += 1e8
        return 1e8 * (1 + 0.5 * (int(now / 1e8) % 3))

    trial = Trial(["x"], sample, budget_ns=40e9, tolerance=0.025, clock=lambda: now, resamples=50)
    for _ in trial.run():
        if trial.looks > len(risks):
            risks.append(1 - trial.judgements["x"].level)
    assert risks == pytest.approx([RISK * share for share in (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)])
    assert sum(risks) == pytest.approx(RISK)
    assert len(risks) == len(LOOKS)


def test_too_few_rounds_have_no_interval() -> None:
    machine = Machine(0, delay=0, **QUIET)
    trial = Trial(["x"], machine.sample, budget_ns=4e9, tolerance=0.025, clock=lambda: machine.now)
    assert len(list(trial.run())) < MINIMUM_ROUNDS
    judgement = trial.judgements["x"]
    assert judgement.verdict == "inconclusive"
    assert judgement.speed.low is None
    assert trial.to_json("x")["smallest_slowdown_pct"] is None


def test_the_interval_covers_the_ratio() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        a, b = np.exp(0.05 * random.standard_t(3, (2, 30, 2)))
        ratio = ratio_of_medians(a, 1.1 * b, 0.05, resamples=400, seed=seed)
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= 1 / 1.1 <= ratio.high
    assert covered >= 0.92 * 200
