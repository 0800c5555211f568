"""Two models on the same tokens: the change of perplexity, with an interval free of what both find hard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmcli.errors import ModelError
from llmcli.scoring.documents import Document, Floats
from llmcli.scoring.figures import report
from llmcli.scoring.protocols import Rule
from llmcli.scoring.resampling import bootstrap

KEPT = ("ppl", "nll_per_token", "bits_per_byte")


def compare(
    documents: Sequence[Document], before: Sequence[Floats], after: Sequence[Floats], rule: Rule, *, seed: int = 0
) -> dict[str, Any]:
    """Figures before and after, and the change of perplexity in per cent with its paired interval.

    before and after hold log-probabilities of the documents' tokens, (n_tokens,) each. The interval is that of the mean
    difference per token. Raises ModelError where a log-probability is not finite.
    """
    reports = [report(documents, scores, rule, seed=seed) for scores in (before, after)]
    for name, figures in zip(("before", "after"), reports, strict=True):
        if "error" in figures:
            raise ModelError(f"{name}: {figures['error']}; no perplexity to compare")
    differences = [a.astype(np.float64) - b for a, b in zip(before, after, strict=True) if len(a)]
    interval = bootstrap(differences, seed=seed)
    return {
        "before": {name: reports[0][name] for name in KEPT},
        "after": {name: reports[1][name] for name in KEPT},
        "ppl_change_pct": _per_cent(reports[1]["nll_per_token"] - reports[0]["nll_per_token"]),
        "ci": {**interval, "low": _per_cent(interval["low"]), "high": _per_cent(interval["high"])},
        **{name: reports[0][name] for name in ("n_tokens", "protocol", "fingerprint")},
    }


def _per_cent(nats: float | None) -> float | None:
    """What a change of so many nats per token makes of a perplexity; None where there is none, or no float as large."""
    try:
        return None if nats is None else 100 * math.expm1(nats)
    except OverflowError:
        return None
