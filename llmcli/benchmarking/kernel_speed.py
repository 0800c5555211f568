"""Times one operator beside torch's and beside its ceiling, in the same rounds, after checking that they agree."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.kernel_cases import Case
from llmcli.benchmarking.statistics import Estimate, disturbances, estimate, estimate_ratio, verdict
from llmcli.benchmarking.timing import MINIMUM_SAMPLE_NS, Clock, Interleaved, Work
from llmcli.errors import GateFailed

FEWEST_ROUNDS = 6  # the fewest samples with a 95 % interval
# Largest difference from torch's result over its largest magnitude; a wrong result has no speed.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class KernelResult:
    """One measured row; ratio is torch's time over ours, share is our rate over the ceiling's best round."""

    case: Case
    ours: Estimate
    torch: Estimate
    ratio: Estimate
    ceiling: float
    share: Estimate
    threads: int
    samples_ns: dict[str, list[float]]
    warnings: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """ "met", "below", "inconclusive", or "" where no goal is set; the worst of the ratio and the share."""
        found = [
            verdict(value, goal)
            for value, goal in ((self.ratio, self.case.goal_ratio), (self.share, self.case.goal_share))
            if goal is not None
        ]
        return next((word for word in ("below", "inconclusive", "met") if word in found), "")

    def to_json(self) -> dict[str, Any]:
        """One JSON object; rates in `unit`."""
        return {
            "op": self.case.op,
            "variant": self.case.variant,
            "shape": self.case.shape,
            "dtype": self.case.dtype_name,
            "n_threads": self.threads,
            "unit": self.case.unit,
            "llmcli": estimate_json(self.ours),
            "torch": estimate_json(self.torch),
            "ratio": estimate_json(self.ratio),
            "ceiling": {"kind": self.case.ceiling, "value": round(self.ceiling, 3)},
            "ceiling_pct": estimate_json(self.share.scaled(100)),
            "goal_ratio": self.case.goal_ratio,
            "goal_ceiling_pct": None if self.case.goal_share is None else 100 * self.case.goal_share,
            "verdict": self.verdict or None,
            "samples_ns": {name: [round(x) for x in samples] for name, samples in self.samples_ns.items()},
            "warnings": list(self.warnings),
        }


def estimate_json(value: Estimate) -> dict[str, float | None]:
    """Median and 95 % interval."""
    low, high = (None if x is None else round(x, 4) for x in (value.low, value.high))
    return {"median": round(value.median, 4), "ci_low": low, "ci_high": high}


def measure_kernel(
    case: Case,
    ceilings: Ceilings,
    *,
    rounds: int,
    warmup: int = 1,
    budget_ns: float = math.inf,
    minimum_ns: int = MINIMUM_SAMPLE_NS,
    clock: Clock = time.perf_counter_ns,
) -> KernelResult:
    """Measure one row: `rounds`, or fewer (six at least, for an interval) when they take longer than the budget.

    Raises GateFailed when the two results differ by more than rounding explains.
    """
    ceiling = None if case.ceiling == "copy" else ceilings.ceiling(kind_of_ceiling(case))
    with torch.inference_mode(not case.gradients):
        contestants = case.build()
        check_agreement(case, contestants.ours(), contestants.torch())
        work: dict[str, Work] = {"llmcli": contestants.ours, "torch": contestants.torch}
        if ceiling is not None:
            work["ceiling"], amount = ceiling.work, ceiling.amount
        elif contestants.copy is not None:
            work["ceiling"], amount = contestants.copy, contestants.copy_bytes
        else:
            raise ValueError(f"{case.name} has a copy ceiling and no copy")
        run = Interleaved(work, minimum_ns=minimum_ns, clock=clock)
        begin = clock()
        for done in run.rounds(rounds, warmup=warmup):
            if done >= FEWEST_ROUNDS and clock() - begin > budget_ns:
                break
    return summarize(case, run.samples, ceiling_amount=amount)


def kind_of_ceiling(case: Case) -> str:
    """The name of the case's ceiling in `Ceilings`."""
    return case.dtype_name if case.ceiling == "matrix" else case.ceiling


def check_agreement(case: Case, ours: object, theirs: object) -> None:
    """Raises GateFailed unless the results agree to rounding in the case's dtype."""
    pairs = zip(tensors(ours), tensors(theirs), strict=True)
    for index, (mine, other) in enumerate(pairs):
        scale = max(other.float().abs().max().item(), 1e-30)
        error = (mine.float() - other.float()).abs().max().item() / scale
        if not error <= AGREEMENT[case.dtype]:
            raise GateFailed(
                f"{case.name}: result {index} differs from torch's by {error:.2g} of its largest value, expected at "
                f"most {AGREEMENT[case.dtype]:g}; run the tests of this operator"
            )


def tensors(result: object) -> tuple[Tensor, ...]:
    """A result as a tuple of tensors."""
    return (result,) if isinstance(result, Tensor) else tuple(result)  # type: ignore[arg-type]


def summarize(case: Case, samples: dict[str, list[float]], *, ceiling_amount: float) -> KernelResult:
    """Rates, paired ratio and share from the nanoseconds of "llmcli", "torch" and "ceiling"."""
    ours = estimate([case.amount / x for x in samples["llmcli"]])
    ceiling = ceiling_amount / min(samples["ceiling"])
    return KernelResult(
        case=case,
        ours=ours,
        torch=estimate([case.amount / x for x in samples["torch"]]),
        ratio=estimate_ratio(samples["torch"], samples["llmcli"]),
        ceiling=ceiling,
        share=ours.scaled(1 / ceiling),
        threads=torch.get_num_threads(),
        samples_ns=samples,
        warnings=tuple(f"{name}: {text}" for name in ("llmcli", "torch") for text in disturbances(samples[name])),
    )
