"""Evaluation: a model's own completions of prompts beside the ones it should have written, and figures of both.

BLEU and ROUGE come from sacrebleu and rouge-score, which are optional. Knows no terminals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.errors import InputError, ResourceError
from llmcli.generation.loop import Request, fit, generate
from llmcli.loading import Loaded

METRICS = ("exact", "bleu", "rouge")
ROUGES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Pair:
    """A prompt and the completion that is wanted."""

    prompt: str
    completion: str


def complete(loaded: Loaded, prompts: Sequence[str], *, max_tokens: int, batch_size: int) -> Iterator[str]:
    """The greedy completion of each prompt in order, up to its end-of-text token; a long prompt loses its beginning."""
    context, tokenizer = loaded.model.config.n_positions, loaded.tokenizer
    encode = tokenizer.encode_whole if loaded.answers else tokenizer.encode
    requests = [
        Request(
            fit(encode(prompt), max_tokens, context, "truncate"),
            max_tokens=max_tokens,
            anew=loaded.answers and tokenizer.leads_with_space,
        )
        for prompt in prompts
    ]
    texts, ended, first = [""] * len(requests), [False] * len(requests), 0
    for event in generate(
        loaded.model, requests, tokenizer, context=context, batch_size=batch_size, device=loaded.device
    ):
        texts[event.request] += event.text
        ended[event.request] = event.finish_reason is not None
        while first < len(texts) and ended[first]:
            yield texts[first]
            first += 1


def answer(text: str, pattern: re.Pattern[str] | None) -> str:
    """What is compared: a text without white space around it, or the pattern's last match in it (its first group)."""
    if pattern is None:
        return text.strip()
    found = list(pattern.finditer(text))
    return (found[-1][1 if pattern.groups else 0] or "").strip() if found else ""


def exact(wanted: Sequence[str], written: Sequence[str]) -> dict[str, Any]:
    """The share of texts that are as wanted; an empty answer where one is wanted is wrong."""
    right = sum(one == other for one, other in zip(wanted, written, strict=True))
    return {"score": right / len(wanted), "right": right, "n": len(wanted)}


def bleu(wanted: Sequence[str], written: Sequence[str]) -> dict[str, Any]:
    """Corpus BLEU from 0 to 100 by sacrebleu, with the signature that makes it comparable (Post 2018)."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise _missing("bleu", "sacrebleu") from None
    metric = BLEU()
    score = metric.corpus_score(list(written), [list(wanted)])
    return {"score": score.score, "signature": str(metric.get_signature())}


def rouge(wanted: Sequence[str], written: Sequence[str]) -> dict[str, Any]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score, without stemming (Lin 2004)."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("rouge", "rouge-score") from None
    scorer = RougeScorer(list(ROUGES))
    scores = [scorer.score(one, other) for one, other in zip(wanted, written, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGES}


def figures(
    pairs: Sequence[Pair], written: Sequence[str], metrics: Sequence[str], pattern: re.Pattern[str] | None
) -> dict[str, dict[str, Any]]:
    """The figures of each metric. Raises ResourceError where the library of one is not installed."""
    wanted = [answer(pair.completion, pattern) for pair in pairs]
    for pair, text in zip(pairs, wanted, strict=True):
        if not text:
            raise InputError(f"the pattern matches nothing in the wanted completion {pair.completion[:60]!r}")
    texts = [answer(text, pattern) for text in written]
    measure = {"exact": exact, "bleu": bleu, "rouge": rouge}
    return {name: measure[name](wanted, texts) for name in metrics}


def _missing(metric: str, package: str) -> ResourceError:
    return ResourceError(f"{metric} needs the package {package}; install llmcli[evaluate], or choose --metric exact")
