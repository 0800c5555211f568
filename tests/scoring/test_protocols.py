"""Each protocol against the tool it is named after: its windows written out slowly, its figures on a random model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcli import loading, scoring
from llmcli.errors import InputError
from llmcli.scoring import wikitext
from llmcli.scoring.protocols import Gpt2Paper, HuggingFace, LlamaCpp, LmEval, Rule, Sliding
from tests.scoring.test_figures import Bytes, document
from tests.tiny import TEXT

LONG = TEXT * 8


class Ended(Bytes):
    """One token per byte; 255, which is in no UTF-8 text, ends a text."""

    eos_id = 255


def test_every_protocol_is_in_the_table_and_in_all() -> None:
    rules = scoring.every(64)
    assert [rule.describe()["family"] for rule in rules] == list(scoring.PROTOCOLS)
    for rule in rules:
        assert scoring.protocol(rule.describe()["name"]) == rule
    docs = [document(300)]
    assert len({scoring.fingerprint(docs, rule) for rule in rules}) == len(rules)


@given(
    st.sampled_from([Sliding(7, 3), HuggingFace(8, 3), HuggingFace(8, 8), LlamaCpp(9), LmEval(7)]), st.integers(0, 90)
)
def test_windows_never_score_a_token_twice(rule: Rule, n_tokens: int) -> None:
    scored: list[int] = []
    for window in rule.windows(n_tokens):
        assert 0 <= window.start < window.first < window.stop <= n_tokens
        assert window.stop - window.start - 1 <= rule.context
        scored += range(window.first, window.stop)
    assert scored == sorted(set(scored))
    assert bool(scored) == (n_tokens >= rule.least)
    if isinstance(rule, (Sliding, LmEval)) and not (isinstance(rule, HuggingFace) and rule.stride == rule.context):
        assert scored == list(range(1, n_tokens))


@pytest.mark.parametrize("n", [1, 6, 7, 8, 14, 15, 30])
def test_lm_eval_reads_what_the_harness_reads(n: int) -> None:
    """Rolling windows of 7 with one token of context: (tokens read, tokens predicted) of each, as lists."""
    text, prefix, longest = list(range(100, 100 + n)), 0, 7
    expected = [([prefix, *text[: longest - 1]][:n], text[:longest])]
    done = longest
    while done < n:
        end = min(done + longest, n)
        expected.append((text[end - longest - 1 : end - 1], text[done:end]))
        done = end
    ids = [prefix, *text]
    got = [(ids[w.start : w.stop - 1], ids[w.first : w.stop]) for w in LmEval(longest).windows(len(ids))]
    assert got == expected


@pytest.mark.parametrize("n", [0, 19, 20, 29, 30, 35])
def test_llamacpp_scores_second_halves_of_whole_chunks(n: int) -> None:
    expected = []
    for chunk in range(n // 10 if n >= 20 else 0):
        for j in range(5, 9):  # from n_ctx / 2 on, the token at j predicts the one behind it
            expected.append(chunk * 10 + j + 1)
    windows = list(LlamaCpp(10).windows(n))
    assert [t for w in windows for t in range(w.first, w.stop)] == expected
    assert all(w.start % 10 == 0 and w.stop == w.start + 10 for w in windows)


@pytest.fixture(scope="module")
def tiny(tiny_gpt2: Path) -> loading.Loaded:
    return loading.load(tiny_gpt2)


@pytest.fixture(scope="module")
def upstream(tiny_gpt2: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()


def figures(tiny: loading.Loaded, rule: Rule, text: str = LONG) -> dict:
    docs = [scoring.encode("text", text, tiny.tokenizer, rule)]
    return scoring.report(docs, scoring.score(tiny.model, docs, rule, batch_size=4), rule)


@pytest.mark.parametrize(("max_length", "stride"), [(64, 32), (64, 64), (48, 13)])
@torch.inference_mode()
def test_hf_agrees_with_the_documented_recipe(tiny, upstream, max_length: int, stride: int) -> None:
    ids = torch.tensor([tiny.tokenizer.encode(LONG)])
    nll_sum, n_tokens, end_before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        target_length = end - end_before
        targets = ids[:, begin:end].clone()
        targets[:, :-target_length] = -100
        counted = int((targets != -100).sum()) - 1  # the recipe's own weight of a window
        nll_sum += float(upstream(ids[:, begin:end], labels=targets).loss) * counted
        n_tokens, end_before = n_tokens + counted, end
        if end == ids.shape[1]:
            break
    assert figures(tiny, HuggingFace(max_length, stride))["ppl"] == pytest.approx(
        math.exp(nll_sum / n_tokens), rel=1e-3
    )


@torch.inference_mode()
def test_lm_eval_figures_are_the_harnesss(tiny, upstream) -> None:
    text = " " + LONG[:900] + "\n"
    ids, total = [tiny.tokenizer.eos_id, *tiny.tokenizer.encode(text)], 0.0
    for window in LmEval(64).windows(len(ids)):
        logits = upstream.double()(torch.tensor([ids[window.start : window.stop - 1]])).logits[0].log_softmax(-1)
        total += sum(float(logits[t - 1 - window.start, ids[t]]) for t in range(window.first, window.stop))
    got = figures(tiny, scoring.protocol("lm-eval", 64), text)
    n_words = 2 + len(text.split())  # an empty part at each end
    assert (got["n_words"], got["n_bytes"], got["n_tokens"]) == (n_words, len(text), len(ids) - 1)
    assert got["word_ppl"] == pytest.approx(math.exp(-total / n_words), rel=1e-3)
    assert got["bits_per_byte"] == pytest.approx(-total / len(text) / math.log(2), rel=1e-5)
    assert (got["headline"]["figure"], got["headline"]["value"]) == ("word_ppl", got["word_ppl"])
    # The interval is that of the same nats: its ends lie about word_ppl as those of ci lie about ppl.
    for end in ("low", "high"):
        share = math.log(got["headline"][end] / got["word_ppl"]) / math.log(got["ci"][end] / got["ppl"])
        assert share == pytest.approx(got["n_tokens"] / got["n_words"])


def test_bytes_and_words_are_those_of_the_scored_part() -> None:
    doc = scoring.encode("text", "ab cd ef gh ij", Ended(), LlamaCpp(6))
    assert (doc.n_tokens, doc.n_bytes, doc.n_words) == (4, 4, 2)  # "d " and "h "
    prefixed = scoring.encode("text", "é a", Ended(), LmEval(3))
    assert (prefixed.ids.tolist()[0], prefixed.n_tokens, prefixed.n_bytes, prefixed.n_words) == (255, 4, 4, 2)
    endless = Ended()
    endless.eos_id = None  # type: ignore[assignment]
    with pytest.raises(InputError, match="expected a tokenizer with an end-of-text token"):
        scoring.encode("text", "a", endless, LmEval(3))


WIKITEXT = """ = Robert Boulter = \n \n Robert Boulter is an English film , television and theatre actor . He said
 " I do n't know " ( in 2 @,@ 005 ) ; the actors ' well @-@ known play ran 1 @.@ 5 hours , Boulter 's first .\n"""
PLAIN = """= Robert Boulter =\n\nRobert Boulter is an English film, television and theatre actor. He said
"I don't know" (in 2,005); the actors' well-known play ran 1.5 hours, Boulter's first.\n"""


def test_wikitext_is_detokenised_and_keeps_its_words() -> None:
    assert wikitext.detokenize(WIKITEXT) == PLAIN
    assert wikitext.detokenize('he said " yes , sir " .') == 'he said "yes, sir".'
    squeezed = [text.replace(" ", "").replace("@", "") for text in (WIKITEXT, PLAIN)]
    assert squeezed[0] == squeezed[1]
    rule = Gpt2Paper(20)
    doc = scoring.encode("text", WIKITEXT, Ended(), rule)
    assert bytes(doc.ids.tolist()[1:]).decode() == PLAIN
    assert doc.n_words == len(WIKITEXT.split()) + WIKITEXT.count("\n")
    assert scoring.encode("text", PLAIN, Ended(), rule).sha256 != doc.sha256


def test_documents_count_once_in_macro_and_by_tokens_in_micro() -> None:
    docs, rule = [document(5, "short"), document(41, "long")], Sliding(8, 4)
    report = scoring.report(docs, [np.full(4, -1, np.float32), np.full(40, -3, np.float32)], rule)
    assert report["macro"]["nll_per_token"] == 2
    assert report["macro"]["ppl"] == pytest.approx(math.exp(2))
    assert report["nll_per_token"] == pytest.approx(124 / 44)
    bpb = [row["bits_per_byte"] for row in report["documents"]]
    assert report["macro"]["bits_per_byte"] == pytest.approx(sum(bpb) / 2)


def test_a_text_too_short_for_a_protocol_says_how_long_it_must_be() -> None:
    rule = LlamaCpp(10)
    doc = scoring.encode("text", "abcde", Ended(), rule)
    assert scoring.total(doc, np.zeros(0, np.float32), rule).error == "expected at least 20 tokens, got 5"


@pytest.mark.parametrize(
    "name", ["llamacpp:3", "llamacpp:8/4", "llamacpp", "hf:1", "hf:8/9", "lm-eval:0", "gpt2-paper:x"]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InputError, match="expected"):
        scoring.protocol(name)
    assert scoring.protocol("gpt2-paper", 99).context == 99
