"""Every kernel on every instruction set of this machine against float64, in units of the last place.

One unit is the spacing of the dtype at the case's largest exact result, because a small result may be the difference of
large terms. A kernel passes when its largest error is at most FACTOR times that of torch's operators in the same dtype,
plus one unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmcli.device import one_thread
from llmcli.errors import ResourceError
from llmcli.ops import registry
from llmcli.verification.operator_cases import CASES, SAME_DTYPE

FACTOR = 2.0


@dataclass(frozen=True)
class Result:
    """An operator on an instruction set in a dtype: the largest errors in ULP, and the input of ours."""

    operator: str
    isa: str
    dtype: str
    cases: int
    error: float
    torch_error: float
    worst: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the budget; NaN is not."""
        return self.error <= FACTOR * self.torch_error + 1


def ulps(got: Tensor, exact: Tensor, top: float) -> float:
    """The largest error of got in ULP of its dtype at `top`; infinite where only one of the two is finite.

    Whole numbers are right or infinitely wrong.
    """
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, exact) else math.inf
    g, e = got.double(), exact.double()
    finite = torch.isfinite(e)
    if not torch.equal(g[~finite].nan_to_num(1.5), e[~finite].nan_to_num(1.5)) or not torch.isfinite(g[finite]).all():
        return math.inf
    kind = torch.finfo(got.dtype)
    unit = 2.0 ** math.floor(math.log2(max(top, kind.smallest_normal))) * kind.eps
    return float((g - e)[finite].abs().max()) / unit if finite.any() else 0.0


def largest(results: Sequence[Tensor]) -> float:
    """The largest finite magnitude of several tensors; 0 where there is none."""
    sizes = [x[torch.isfinite(x)].abs() for x in results if x.is_floating_point()]
    return max((float(size.max()) for size in sizes if size.numel()), default=0.0)


def run(name: str, arguments: tuple[Any, ...], kernel: bool) -> list[Tensor]:
    """The results of an operator: by its kernel, or by torch's operators."""
    if name == "softmax_out":
        *given, out = arguments
        if kernel:
            torch.ops.llmcli.softmax_out.default(*given, out=out)
        else:
            registry.fallback(name)(*given, out=out)
        return [out]
    operator = getattr(torch.ops.llmcli, name).default if kernel else registry.fallback(name)
    found = operator(*arguments)
    return list(found) if isinstance(found, tuple | list) else [found]


def measure(name: str, isa: str, dtype: torch.dtype) -> Result:
    """Run every case of one operator under the current instruction set."""

    def narrow(x: Tensor) -> Tensor:
        return x.to(dtype)

    def wide(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    casts = (narrow, narrow, narrow if name in SAME_DTYPE else wide)
    error, theirs, worst, n = 0.0, 0.0, "", 0
    for (case, ours), (_, peers), (_, exact) in zip(*(CASES[name](cast) for cast in casts), strict=True):
        expected = run(name, exact, kernel=False)
        n, top = n + 1, largest(expected)
        for got, peer, truth in zip(run(name, ours, True), run(name, peers, False), expected, strict=True):
            found, theirs = ulps(got, truth, top), max(theirs, ulps(peer, truth, top))
            if not found <= error:
                error, worst = found, case
    return Result(name, isa, str(dtype).removeprefix("torch."), n, error, theirs, worst)


def unchecked() -> list[str]:
    """Operators with a CPU kernel that no case covers."""
    return [
        op.name for op in registry.status() if op.served_by == "kernel" and op.device == "cpu" and op.name not in CASES
    ]


def without_kernel() -> list[str]:
    """Operators that torch serves on the CPU, so that there is nothing to verify."""
    return [op.name for op in registry.status() if op.served_by != "kernel" and op.device == "cpu"]


def verify(dtypes: Sequence[torch.dtype]) -> Iterator[Result]:
    """Measure every operator that has a kernel, on each instruction set; the one in use comes back at the end.

    On one thread, which is quickest for small shapes: `verify determinism` sees to the threads. Raises ResourceError
    where there are no kernels.
    """
    kernels = registry.kernels
    if kernels is None:
        raise ResourceError(f"expected kernels to verify, got none: {registry.why_no_kernels}; reinstall llmcli")
    served = [op.name for op in registry.status() if op.served_by == "kernel" and op.device == "cpu"]
    before = kernels.isa()
    try:
        with one_thread():
            for isa in kernels.available_isas():
                kernels.set_isa(isa)
                for name in CASES:
                    if name in served:
                        yield from (measure(name, isa, dtype) for dtype in dtypes)
    finally:
        kernels.set_isa(before)
