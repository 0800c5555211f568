"""Intervals from correlated values: the block bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.scoring.documents import Floats


def bootstrap(values: Sequence[Floats], *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Interval of the mean over all values, by the studentised block bootstrap (Davison & Hinkley 1997, 2.4, 8.2).

    Neighbouring tokens are correlated, so blocks are drawn: whole documents when there are at least 30, else
    stretches of about sqrt(n) tokens. Fewer than 8 values give no interval (None).
    """
    n = sum(map(len, values))
    answer = {"level": level, "low": None, "high": None, "method": "fewer than 8 tokens"}
    if n < 8:
        return answer
    by_document = len(values) >= 30
    length = min(max(1, math.isqrt(n)), n // 8)
    if by_document:
        sums, counts = [float(v.sum()) for v in values], [len(v) for v in values]
    else:
        blocks = [b for v in values for b in np.array_split(v, max(1, round(len(v) / length)))]
        sums, counts = [float(b.sum()) for b in blocks], [len(b) for b in blocks]
    # More than a thousand blocks cost time and add nothing: neighbours are merged.
    groups = np.array_split(np.arange(len(sums)), min(len(sums), 1024))
    s = np.array([sum(sums[i] for i in group) for group in groups])
    c = np.array([sum(counts[i] for i in group) for group in groups], dtype=np.float64)
    low, high = _studentised(s, c, level, np.random.default_rng(seed).integers(0, len(s), (resamples, len(s))))
    if min(float(v.min()) for v in values if len(v)) >= 0:
        low = max(0.0, low)  # no mean of such values is below 0
    unit = "documents" if by_document else f"{length} tokens"
    method = f"studentised bootstrap, {resamples} resamples of {len(s)} blocks of {unit}, seed {seed}"
    return {"level": level, "low": low, "high": high, "method": method}


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
