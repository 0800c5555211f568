"""Evaluation: what is compared, the figures beside hand counts and the libraries, completions of any batch."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest

from llmcli import evaluation, loading
from llmcli.errors import InputError, ResourceError
from llmcli.evaluation import Pair

PAIRS = [Pair("2 + 2 =", "#### 4"), Pair("3 + 3 =", "so #### 5\n#### 6"), Pair("1 + 0 =", "#### 1")]


def test_exact_match_ignores_white_space_around() -> None:
    found = evaluation.figures(PAIRS, [" #### 4\n", "6", ""], ["exact"], None)
    assert found == {"exact": {"score": 1 / 3, "right": 1, "n": 3}}


def test_only_the_answer_is_compared() -> None:
    pattern = re.compile("#### (.+)")
    found = evaluation.figures(PAIRS, ["I think #### 4", "#### 5 #### 6", "1"], ["exact"], pattern)
    assert found["exact"]["right"] == 1  # the first; '.+' runs to the end of a line
    with pytest.raises(InputError, match="matches nothing in the wanted completion 'no'"):
        evaluation.figures([Pair("a", "no")], ["#### 1"], ["exact"], pattern)


def test_bleu_and_rouge_are_the_libraries() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    pairs = [Pair("", "the old ship lay still in the calm sea"), Pair("", "the boy looked at the sky")]
    same = evaluation.figures(pairs, [pair.completion for pair in pairs], ["bleu", "rouge"], None)
    assert same["bleu"]["score"] == pytest.approx(100)
    assert "version" in same["bleu"]["signature"]
    assert same["rouge"] == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    other = evaluation.figures(pairs, ["the ship lay", "a boy looked up"], ["bleu", "rouge"], None)
    assert 0 < other["bleu"]["score"] < 40
    recalls, precisions = (3 / 9, 2 / 6), (1, 2 / 4)
    f1 = [2 * r * p / (r + p) for r, p in zip(recalls, precisions, strict=True)]
    assert other["rouge"]["rouge1"] == pytest.approx(sum(f1) / 2)


@pytest.mark.parametrize(("metric", "package"), [("bleu", "sacrebleu"), ("rouge", "rouge-score")])
def test_a_missing_library_is_named(metric: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def none(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("sacrebleu", "rouge_score")):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(ResourceError, match=package):
        evaluation.figures(PAIRS, ["", "", ""], [metric], None)


def test_completions_do_not_depend_on_the_batch(tiny_gpt2: Path) -> None:
    loaded = loading.load(tiny_gpt2)
    prompts = ["The sea", "said the boy. " * 20, "ship", "Where shall we go?"]
    alone = list(evaluation.complete(loaded, prompts, max_tokens=6, batch_size=1))
    assert all(alone)
    for batch_size in (2, 4):
        assert list(evaluation.complete(loaded, prompts, max_tokens=6, batch_size=batch_size)) == alone
