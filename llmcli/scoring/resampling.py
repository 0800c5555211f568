"""Intervals from correlated values: the block bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.scoring.documents import Floats

DOCUMENTS = 30  # as many are drawn whole


@dataclass(frozen=True)
class Blocks:
    """What a bootstrap draws: sums (M,) and numbers (M,) of the values of each block, and what a block is."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]
    unit: str  # "documents" or "72 tokens"


def blocks(values: Sequence[Floats]) -> Blocks:
    """Whole documents when there are at least 30, else stretches of about sqrt(n) tokens: neighbours are correlated.

    More than a thousand blocks cost time and add nothing: neighbours are merged.
    """
    n = sum(map(len, values))
    length = min(max(1, math.isqrt(n)), max(1, n // 8))
    by_document = len(values) >= DOCUMENTS
    pieces = [
        piece for v in values for piece in ([v] if by_document else np.array_split(v, max(1, round(len(v) / length))))
    ]
    sums, counts = [float(piece.sum()) for piece in pieces], [len(piece) for piece in pieces]
    groups = np.array_split(np.arange(len(sums)), min(len(sums), 1024)) if sums else []
    return Blocks(
        np.array([sum(sums[i] for i in group) for group in groups], dtype=np.float64),
        np.array([sum(counts[i] for i in group) for group in groups], dtype=np.float64),
        "documents" if by_document else f"{length} tokens",
    )


def bootstrap(values: Sequence[Floats], *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Interval of the mean over all values, as `interval` of their `blocks`; not below 0 when no value is."""
    floor = 0.0 if min((float(v.min()) for v in values if len(v)), default=-1.0) >= 0 else -math.inf
    return interval(blocks(values), level=level, resamples=resamples, seed=seed, floor=floor)


def interval(
    drawn: Blocks, *, level: float = 0.95, resamples: int = 1000, seed: int = 0, floor: float = -math.inf
) -> dict[str, Any]:
    """Interval of sum over number by the studentised block bootstrap (Davison & Hinkley 1997, 2.4, 8.2).

    Fewer than 8 values give no interval (None).
    """
    answer = {"level": level, "low": None, "high": None, "method": "fewer than 8 tokens"}
    m = len(drawn.sums)
    if drawn.counts.sum() < 8:
        return answer
    draws = np.random.default_rng(seed).integers(0, m, (resamples, m))
    low, high = _studentised(drawn.sums, drawn.counts, level, draws)
    method = f"studentised bootstrap, {resamples} resamples of {m} blocks of {drawn.unit}, seed {seed}"
    return {"level": level, "low": max(floor, low), "high": high, "method": method}


def _studentised(
    s: npt.NDArray[np.float64], c: npt.NDArray[np.float64], level: float, draws: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Interval of sum(s) / sum(c) from block sums s (M,), counts c (M,) and resampled rows draws (R, M)."""
    m = len(s)
    mean = float(s.sum() / c.sum())
    error = math.sqrt(m / (m - 1) * float(((s - mean * c) ** 2).sum())) / float(c.sum())
    if error == 0:
        return mean, mean
    drawn_s, drawn_c = s[draws], c[draws]
    means = drawn_s.sum(1) / drawn_c.sum(1)
    squares = ((drawn_s - means[:, None] * drawn_c) ** 2).sum(1)
    errors = np.sqrt(m / (m - 1) * squares) / drawn_c.sum(1)
    # A draw of one block only has no spread; the floor keeps its quotient finite.
    low, high = np.quantile((means - mean) / np.maximum(errors, 1e-3 * error), [(1 - level) / 2, (1 + level) / 2])
    return mean - float(high) * error, mean - float(low) * error
