"""Window plans, sums and intervals against slow and obvious references."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcli import loading, scoring
from llmcli.errors import InputError
from llmcli.ops import registry
from llmcli.scoring import Document, Sliding


class Counting:
    """A model whose p(next) depends on every id it reads, on their order and on nothing else; it keeps its calls."""

    def __init__(self, vocab_size: int = 11) -> None:
        self.vocab_size = vocab_size
        self.shapes: list[tuple[int, int]] = []

    def logprobs(self, ids: torch.Tensor, first: int = 1) -> torch.Tensor:
        self.shapes.append((ids.shape[0], ids.shape[1]))
        return torch.tensor([[self.one(row[:t], row[t]) for t in range(first, len(row))] for row in ids.tolist()])

    def one(self, context: list[int], token: int) -> float:
        digest = hashlib.sha256(str(context).encode()).digest()
        logits = [digest[v] / 64 for v in range(self.vocab_size)]
        return logits[token] - math.log(sum(math.exp(x) for x in logits))


class Bytes:
    """A tokenizer of one token per byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def document(n_tokens: int, name: str = "text", vocab_size: int = 11) -> Document:
    ids = torch.randint(vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens), dtype=torch.int32)
    return Document(name, ids, n_bytes=3 * n_tokens, n_words=n_tokens // 2, sha256=f"{n_tokens:064d}")


def score(model: scoring.Scores, doc: Document, protocol: Sliding, batch_size: int = 1) -> np.ndarray:
    parts = list(scoring.logprobs(model, doc.ids, protocol, batch_size=batch_size))
    return np.concatenate([np.zeros(0, np.float32), *parts])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 300))
def test_every_token_is_scored_once_with_the_promised_context(context: int, stride: int, n_tokens: int) -> None:
    stride = min(stride, context)
    windows = list(Sliding(context, stride).windows(n_tokens))
    scored = [t for window in windows for t in range(window.first, window.stop)]
    assert scored == list(range(1, n_tokens))
    for window in windows:
        assert window.stop - window.start - 1 <= context
        for t in range(window.first, window.stop):
            assert t - window.start >= min(t, context + 1 - stride)
    assert [window.start for window in windows] == [i * stride for i in range(len(windows))]


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 1), (8, 3), (1, 1), (64, 32)])
@pytest.mark.parametrize("n_tokens", [2, 3, 8, 9, 10, 16, 17, 18, 25])
def test_scores_equal_one_window_at_a_time(context: int, stride: int, n_tokens: int) -> None:
    model, doc = Counting(), document(n_tokens)
    ids, expected = doc.ids.tolist(), []
    start = 0
    for t in range(1, n_tokens):
        if t - start > context:
            start += stride
        expected.append(model.one(ids[start:t], ids[t]))
    got = score(model, doc, Sliding(context, stride))
    np.testing.assert_array_equal(got, np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batches_change_no_bit(batch_size: int) -> None:
    model, doc, protocol = Counting(), document(50), Sliding(8, 3)
    np.testing.assert_array_equal(score(model, doc, protocol), score(model, doc, protocol, batch_size))
    assert max(rows for rows, _ in model.shapes) <= batch_size
    assert any(rows > 1 for rows, _ in model.shapes)


@pytest.fixture(scope="module")
def tiny(tiny_gpt2: Path) -> loading.Loaded:
    return loading.load(tiny_gpt2)


@pytest.fixture(scope="module")
def upstream(tiny_gpt2: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()


@pytest.mark.parametrize(
    ("context", "stride", "n_tokens"),
    [(64, 32, 2), (64, 32, 64), (64, 32, 65), (64, 32, 66), (64, 64, 193), (64, 64, 194), (17, 5, 120), (8, 1, 40)],
)
@torch.inference_mode()
def test_gpt2_equals_transformers_in_float64(tiny, upstream, context: int, stride: int, n_tokens: int) -> None:
    doc = document(n_tokens, vocab_size=320)
    exact, ids, expected, start, t = upstream.double(), doc.ids.long(), [], 0, 1
    while t < n_tokens:
        stop = min(start + context + 1, n_tokens)
        log_p = exact(ids[None, start : stop - 1]).logits[0].log_softmax(-1)
        expected += [float(log_p[i - start - 1, ids[i]]) for i in range(t, stop)]
        start, t = start + stride, stop
    got = score(tiny.model, doc, Sliding(context, stride), batch_size=4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)
    figures = scoring.report([doc], [got], Sliding(context, stride))
    assert figures["ppl"] == pytest.approx(math.exp(-np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize(("max_length", "stride"), [(64, 32), (33, 16), (64, 63)])
@torch.inference_mode()
def test_gpt2_equals_the_recipe_of_transformers(tiny, upstream, max_length: int, stride: int) -> None:
    doc = document(200, vocab_size=320)
    ids, total, n_tokens, before = doc.ids.long()[None], 0.0, 0, 0
    for begin in range(0, 200, stride):
        end = min(begin + max_length, 200)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        n = int((labels[:, 1:] != -100).sum())
        total += float(upstream.float()(ids[:, begin:end], labels=labels).loss) * n
        n_tokens, before = n_tokens + n, end
        if end == 200:
            break
    protocol = Sliding(max_length - 1, stride)
    figures = scoring.report([doc], [score(tiny.model, doc, protocol)], protocol)
    assert figures["n_tokens"] == n_tokens == 199
    assert figures["nll_per_token"] == pytest.approx(total / n_tokens, rel=1e-6)


KERNELS = {row.name for row in registry.status() if row.served_by == "kernel"}


@pytest.mark.skipif(not {"attention", "linear", "softmax"} <= KERNELS, reason="torch's operators promise no order")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stride", [1, 7, 33])
def test_gpt2_batches_and_threads_change_no_bit(tiny_gpt2: Path, dtype: str, stride: int) -> None:
    model, doc, protocol = (
        loading.load(tiny_gpt2, dtype=dtype).model,
        document(150, vocab_size=320),
        Sliding(33, stride),
    )
    alone, threads = score(model, doc, protocol), torch.get_num_threads()
    try:
        for n_threads, batch_size in ((1, 2), (2, 5), (3, 64)):
            torch.set_num_threads(n_threads)
            np.testing.assert_array_equal(alone, score(model, doc, protocol, batch_size))
    finally:
        torch.set_num_threads(threads)


def test_documents_do_not_leak_into_each_other() -> None:
    model, protocol = Counting(), Sliding(8, 4)
    docs = [document(20, "a"), document(13, "b")]
    together = scoring.report(docs, [score(model, doc, protocol) for doc in docs], protocol)
    for doc, row in zip(docs, together["documents"], strict=True):
        alone = scoring.report([doc], [score(model, doc, protocol)], protocol)
        assert row == alone["documents"][0]
        assert row["ppl"] == alone["ppl"]
    weighted = sum(row["nll_per_token"] * row["n_tokens"] for row in together["documents"]) / together["n_tokens"]
    assert together["nll_per_token"] == pytest.approx(weighted, rel=1e-14)
    assert together["n_tokens"] == 19 + 12


def test_figures_follow_from_the_sum() -> None:
    doc = scoring.encode("text", "héllo wörld", Bytes())
    scores = np.full(doc.n_tokens, -math.log(4), dtype=np.float32)
    figures = scoring.report([doc], [scores], Sliding(4, 2))
    assert (figures["n_tokens"], figures["n_bytes"], figures["n_words"]) == (12, 12, 2)
    assert figures["ppl"] == pytest.approx(4, rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(2, rel=1e-6)
    assert figures["word_ppl"] == pytest.approx(4**6, rel=1e-5)
    assert figures["nll_per_token"] == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "n_tokens", "n_bytes", "n_words"), [("", 0, 0, 0), ("a", 0, 0, 0), ("a b", 2, 2, 1), ("\u00e9", 1, 1, 1)]
)
def test_the_first_token_is_context_only(text: str, n_tokens: int, n_bytes: int, n_words: int) -> None:
    doc = scoring.encode("text", text, Bytes())
    assert (doc.n_tokens, doc.n_bytes, doc.n_words) == (n_tokens, n_bytes, n_words)


def test_sum_is_correctly_rounded_whatever_the_order() -> None:
    scores = -np.random.default_rng(0).exponential(3, 9_999).astype(np.float32)
    doc = document(10_000)
    assert scoring.total(doc, scores) == scoring.total(doc, scores[::-1])
    assert scoring.total(doc, scores).nll == math.fsum(-x for x in scores.astype(float))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_score_that_is_no_number_leaves_no_figure(value: float) -> None:
    docs, protocol = [document(5, "good"), document(6, "bad")], Sliding(4, 2)
    scores = [np.full(4, -1, np.float32), np.full(5, -1, np.float32)]
    scores[1][2] = value
    figures = scoring.report(docs, scores, protocol)
    assert figures["ppl"] is None
    assert figures["bits_per_byte"] is None
    assert (figures["ci"]["low"], figures["ci"]["method"]) == (None, "no perplexity")
    assert "bad: log-probability of token 3" in figures["error"]
    assert figures["documents"][0]["ppl"] == pytest.approx(math.e)
    assert figures["documents"][1]["ppl"] is None


def test_a_short_document_is_listed_and_left_out() -> None:
    docs, protocol = [document(1, "short"), document(9, "long")], Sliding(4, 2)
    figures = scoring.report(docs, [np.zeros(0, np.float32), np.full(8, -2, np.float32)], protocol)
    assert figures["ppl"] == pytest.approx(math.e**2)
    assert "error" not in figures
    assert figures["documents"][0]["error"] == "expected at least two tokens, got 1"
    assert "two tokens" in scoring.report(docs[:1], [np.zeros(0, np.float32)], protocol)["error"]


def test_a_perplexity_beyond_floats_is_null() -> None:
    doc = document(9)
    figures = scoring.report([doc], [np.full(8, -800, np.float32)], Sliding(4, 2))
    assert figures["ppl"] is None
    assert figures["nll_per_token"] == 800


@pytest.mark.parametrize("name", ["sliding:8/4", "sliding:8", "sliding:1/1"])
def test_a_protocol_has_a_name(name: str) -> None:
    described = scoring.protocol(name).describe()
    assert scoring.protocol(described["name"]).describe() == described
    assert described["name"].startswith(name)


@pytest.mark.parametrize(
    "name",
    ["", "sliding", "sliding:", "sliding:0", "sliding:8/0", "sliding:8/9", "sliding:-8/4", "sliding:8/", "other:8/4",
     "sliding:8/4/2", "sliding: 8/4", "sliding:８/４", "sliding:" + "9" * 5000],
)  # fmt: skip
def test_a_protocol_that_cannot_be(name: str) -> None:
    with pytest.raises(InputError, match=r"expected"):
        scoring.protocol(name)


@given(st.text("0123456789/-+_. x\u0663", max_size=12))
def test_protocol_names_are_parsed_or_refused(name: str) -> None:
    with contextlib.suppress(InputError):
        assert scoring.protocol("sliding:" + name).context >= 1


def test_fingerprints_differ_where_perplexities_do_not_compare() -> None:
    a, b = document(9), document(10)
    prints = [
        scoring.fingerprint(docs, protocol)
        for docs, protocol in [
            ([a], Sliding(8, 4)), ([b], Sliding(8, 4)), ([a, b], Sliding(8, 4)), ([b, a], Sliding(8, 4)),
            ([a], Sliding(8, 3)), ([a], Sliding(7, 4)),
        ]
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    renamed = Document("other", a.ids, a.n_bytes, a.n_words, a.sha256)
    assert scoring.fingerprint([renamed], Sliding(8, 4)) == prints[0]


def series(rng: np.random.Generator, n: int, correlation: float) -> np.ndarray:
    """Skewed, autocorrelated positive values with mean exp(1/2), as negative log-likelihoods are."""
    noise = rng.standard_normal(n) * math.sqrt(1 - correlation**2)
    values = itertools.accumulate(noise, lambda z, e: correlation * z + e, initial=rng.standard_normal())
    return np.exp(np.fromiter(values, float))[1:]


@pytest.mark.parametrize(("n", "correlation", "least"), [(200, 0.0, 0.88), (1000, 0.3, 0.88), (2000, 0.7, 0.85)])
def test_interval_covers_the_mean(n: int, correlation: float, least: float) -> None:
    rng, hits, rounds = np.random.default_rng(n), 0, 200
    for _ in range(rounds):
        ci = scoring.bootstrap([series(rng, n, correlation)])
        hits += ci["low"] <= math.exp(0.5) <= ci["high"]
    assert least <= hits / rounds <= 0.99


def test_interval_covers_over_documents_that_differ() -> None:
    rng, hits, rounds = np.random.default_rng(5), 0, 200
    for _ in range(rounds):
        level = rng.exponential(1.0, 40)  # tokens of a document share its difficulty
        ci = scoring.bootstrap([x + rng.exponential(1.0, 30) for x in level])
        hits += ci["low"] <= 2.0 <= ci["high"]
    assert 0.86 <= hits / rounds <= 0.99


def test_interval_is_seeded_and_ordered() -> None:
    values = [series(np.random.default_rng(1), 500, 0.2)]
    first, again, other = (scoring.bootstrap(values, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["low"] != other["low"]
    assert first["low"] < values[0].mean() < first["high"]
    assert scoring.bootstrap(values, level=0.5)["low"] > first["low"]


@pytest.mark.parametrize("values", [[], [np.ones(1)], [np.ones(3), np.ones(4)]])
def test_no_interval_from_too_little(values: list[np.ndarray]) -> None:
    ci = scoring.bootstrap(values)
    assert (ci["low"], ci["high"]) == (None, None)
    assert ci["method"] == "fewer than 8 tokens"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40).filter(lambda sizes: sum(sizes) >= 8))
def test_interval_exists_for_any_corpus(sizes: list[int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    values = [rng.exponential(2.0, n) for n in sizes]
    ci = scoring.bootstrap(values, resamples=50)
    assert 0 <= ci["low"] <= ci["high"] < math.inf


def test_constant_scores_have_a_point_interval() -> None:
    ci = scoring.bootstrap([np.full(100, 2.5)])
    assert (ci["low"], ci["high"]) == (2.5, 2.5)
