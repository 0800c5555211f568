"""Two models on the same tokens: the interval is that of the difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmcli.errors import ModelError
from llmcli.scoring import Document, Sliding, compare

RULE = Sliding(8, 4)


def pair(n: int, change: float, noise: float) -> tuple[list[Document], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    document = Document("x", torch.zeros(n + 1, dtype=torch.int32), 4 * n, n, "0")
    before = -rng.exponential(3.0, n).astype(np.float32)
    return [document], [before], [(before - change + noise * rng.standard_normal(n)).astype(np.float32)]


@pytest.mark.parametrize("change", [0.01, -0.01])
def test_a_small_change_shows_through_large_differences_between_tokens(change: float) -> None:
    found = compare(*pair(2000, change, 0.05), RULE)
    assert found["ppl_change_pct"] == pytest.approx(100 * math.expm1(change), abs=0.5)
    assert found["ppl_change_pct"] == pytest.approx(100 * (found["after"]["ppl"] / found["before"]["ppl"] - 1))
    assert (found["ci"]["low"] if change > 0 else -found["ci"]["high"]) > 0
    assert found["ci"]["low"] < found["ppl_change_pct"] < found["ci"]["high"]
    assert found["ci"]["high"] - found["ci"]["low"] < 1


def test_no_change() -> None:
    found = compare(*pair(100, 0.0, 0.0), RULE)
    assert (found["ppl_change_pct"], found["ci"]["low"], found["ci"]["high"]) == (0, 0, 0)


def test_few_tokens_have_no_interval() -> None:
    found = compare(*pair(5, 0.1, 0.0), RULE)
    assert found["ci"]["low"] is None
    assert found["ppl_change_pct"] > 0


def test_what_is_no_number_is_an_error() -> None:
    documents, before, after = pair(50, 0.0, 0.0)
    after[0][3] = np.nan
    with pytest.raises(ModelError, match="after: x: log-probability of token 4 is nan"):
        compare(documents, before, after, RULE)
