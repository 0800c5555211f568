"""Paired differences against sums by hand, verdicts, and distributions against float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcli import loading, scoring
from llmcli.scoring import Sliding, comparison
from llmcli.scoring.comparison import Pair
from tests.scoring.test_figures import Counting, document, series


def pair(rng: np.random.Generator, n: int, shift: float, noise: float) -> Pair:
    old = -series(rng, n, 0.5).astype(np.float32)
    return Pair(old, (old - shift + noise * rng.standard_normal(n)).astype(np.float32))


@pytest.mark.parametrize(
    ("shift", "noise", "most", "word"),
    [(0.0, 0.0, 0.5, "passed"), (0.0, 0.05, 0.5, "passed"), (0.02, 0.05, 0.5, "failed"), (-0.02, 0.05, 0.5, "passed"),
     (0.005, 0.05, 0.5, "inconclusive"), (0.02, 3.0, 0.5, "inconclusive"), (-0.02, 0.05, -5, "failed")],
)  # fmt: skip
def test_verdicts(shift: float, noise: float, most: float, word: str) -> None:
    rng = np.random.default_rng(3)
    docs = [document(4001)]
    report = comparison.summarise(docs, [pair(rng, 4000, shift, noise)], Sliding(8, 4))
    assert comparison.verdict(report, most) == word
    assert report["ci"]["low"] <= report["increase_pct"] <= report["ci"]["high"]


def test_pairing_finds_what_the_models_own_intervals_hide() -> None:
    docs, both = [document(2001)], pair(np.random.default_rng(1), 2000, 0.01, 0.05)
    ppl = [scoring.report(docs, [scores], Sliding(8, 4)) for scores in (both.old, both.new)]
    assert ppl[1]["ci"]["low"] < ppl[0]["ppl"] < ppl[1]["ci"]["high"]
    report = comparison.summarise(docs, [both], Sliding(8, 4))
    assert report["ci"]["low"] > 0
    assert report["increase_pct"] == pytest.approx(100 * (ppl[1]["ppl"] / ppl[0]["ppl"] - 1), rel=1e-6)
    assert report["fingerprint"] == ppl[0]["fingerprint"]


def test_the_interval_covers_a_difference_of_either_sign() -> None:
    rng, hits = np.random.default_rng(2), 0
    for n in range(100):
        shift = (-1) ** n * 0.01
        report = comparison.summarise([document(601)], [pair(rng, 600, shift, 0.2)], Sliding(8, 4))
        hits += report["ci"]["low"] <= 100 * math.expm1(shift) <= report["ci"]["high"]
    assert 85 <= hits <= 100


def test_where_it_became_worse() -> None:
    docs = [document(4, "a"), document(5, "b"), document(1, "short")]
    old, new = [[-1, -1, -1], [-2, -2, -2, -2]], [[-1, -3, -1], [-1, -2, -2, -2]]
    pairs = [
        Pair(np.array(a, np.float32), np.array(b, np.float32)) for a, b in zip([*old, []], [*new, []], strict=True)
    ]
    report = comparison.summarise(docs, pairs, Sliding(8, 4))
    assert [row["name"] for row in report["worst_documents"]] == ["a"]
    assert report["worst_tokens"][0] == {
        "name": "a", "document": 0, "position": 1, "increase_bits": pytest.approx(2 / math.log(2))
    }  # fmt: skip
    assert (report["documents_improved"], report["n_documents"], report["n_tokens"]) == (0.5, 2, 7)
    assert report["tokens_improved"] == pytest.approx(1 / 7)
    assert report["delta_p"]["p50"] == 0
    assert (report["ci"]["low"], comparison.verdict(report, 1)) == (None, "inconclusive")


def test_a_score_that_is_no_number_is_no_comparison() -> None:
    bad = Pair(np.full(9, -1, np.float32), np.full(9, -1, np.float32))
    bad.new[3] = math.nan
    report = comparison.summarise([document(10)], [bad], Sliding(8, 4))
    assert (report["increase_pct"], report["new_ppl"], report["worst_tokens"]) == (None, None, [])
    assert "not a finite number" in report["error"]
    assert comparison.verdict(report, 5) == "inconclusive"


def test_both_models_see_the_same_windows() -> None:
    models, docs, rule = [Counting(), Counting()], [document(30), document(13, "b")], Sliding(8, 3)
    pairs = comparison.compare(*models, docs, rule, batch_size=2)
    assert models[0].shapes == models[1].shapes
    for found, alone in zip(pairs, scoring.score(Counting(), docs, rule), strict=True):
        np.testing.assert_array_equal(found.old, alone)
        np.testing.assert_array_equal(found.increase, 0)


@torch.inference_mode()
def test_distributions_against_float64(tiny_gpt2: Path, tmp_path: Path) -> None:
    from tests.tiny import write_checkpoint

    write_checkpoint(tmp_path, seed=1)
    models = [loading.load(path).model for path in (tiny_gpt2, tmp_path)]
    doc, rule = document(100, vocab_size=320), Sliding(24, 12)
    (got,) = comparison.compare(*models, [doc], rule, batch_size=3, distributions=True)
    (plain,) = comparison.compare(*models, [doc], rule)
    np.testing.assert_allclose(got.old, plain.old, rtol=1e-6)  # reduced in another order
    np.testing.assert_allclose(got.new, plain.new, rtol=1e-6)
    divergence, agree = [], []
    for window in rule.windows(100):
        logits = [model(doc.ids[None, window.start : window.stop - 1].long())[0].double() for model in models]
        p, q = (x.log_softmax(-1)[window.first - window.start - 1 :] for x in logits)
        divergence += (p.exp() * (p - q)).sum(-1).tolist()
        agree += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert got.divergence is not None
    assert got.agree is not None
    np.testing.assert_allclose(got.divergence, divergence, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(got.agree, agree)
    report = comparison.summarise([doc], [got], rule)
    assert report["kl"]["mean"] == pytest.approx(np.mean(divergence), rel=1e-3)
    assert report["top1_agreement"] == pytest.approx(np.mean(agree))
