"""Multiple-choice questions and missing last words: records to rows of ids, log-probabilities to accuracies.

HellaSwag (Zellers et al. 2019) and LAMBADA (Paperno et al. 2016) records are read as published and turned into text as
the lm-eval harness does, so that accuracies compare with its `acc` and `acc_norm`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from llmcli.errors import InputError

RULES = ("raw", "token", "byte")


class Encodes(Protocol):
    """What choices need of a tokenizer."""

    eos_id: int | None

    def encode(self, text: str) -> list[int]: ...


class Predicts(Protocol):
    """ids (B,T) → log p(ids[t] | ids[..t-1]) and the likeliest token in its place, for t = first to T-1."""

    def predictions(self, ids: Tensor, first: int = 1) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Question:
    """A context and the texts that may follow it; label is the right one's index, None where it is not known.

    A single choice is a cloze: it counts as right when every token of it is the likeliest one.
    """

    context: str
    choices: tuple[str, ...]
    label: int | None
    id: Any = None


@dataclass(frozen=True)
class Answer:
    """What a model makes of one choice: log p in nats, and whether each of its tokens was the likeliest."""

    logprob: float
    n_tokens: int
    n_bytes: int
    greedy: bool

    def score(self, rule: str) -> float:
        """The log-probability, whole or per token or byte."""
        return self.logprob / {"raw": 1, "token": self.n_tokens, "byte": self.n_bytes}[rule]


def parse(line: bytes) -> Question:
    """A line of JSONL: {"prompt", "choices", "label"?}, a HellaSwag record, or a LAMBADA one. Raises InputError."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON object in UTF-8, got something else: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"expected a JSON object, got {type(record).__name__}")
    if "endings" in record:
        return hellaswag(record)
    if "choices" in record:
        choices = _texts(record, "choices")
        return Question(_text(record, "prompt"), choices, _label(record, len(choices)), record.get("id"))
    if "text" in record:
        return lambada(_text(record, "text"), record.get("id"))
    raise InputError('expected "prompt" and "choices", or HellaSwag\'s "ctx" and "endings", or LAMBADA\'s "text"')


def plain(line: bytes) -> Question:
    """A line of LAMBADA's own plain text files, a passage in each. Raises InputError."""
    try:
        return lambada(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8, got something else: {error}") from None


def lambada(text: str, id: Any = None) -> Question:
    """A passage whose last word is missing."""
    context, space, word = text.rpartition(" ")
    if not context or not word:
        raise InputError('expected a "text" that ends with a space and a word, got neither')
    return Question(context, (space + word,), 0, id)


def hellaswag(record: Mapping[str, Any]) -> Question:
    """ctx_a, ctx_b and activity_label joined, and brackets removed, as the lm-eval harness does it."""

    def clean(text: str) -> str:
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    endings = _texts(record, "endings")
    begin, rest, title = (_text(record, name) for name in ("ctx_a", "ctx_b", "activity_label"))
    context = clean(f"{title}: {begin} {rest.capitalize()}")
    return Question(
        context,
        tuple(f" {clean(e)}" for e in endings),
        _label(record, len(endings)),
        record.get("ind", record.get("id")),
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise InputError(f'expected a "{name}" of text, got {value!r}')
    return value


def _texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record[name]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item.strip() for item in value):
        raise InputError(f'expected "{name}" to be a list of texts, none of them empty, got {value!r}')
    return tuple(value)


def _label(record: Mapping[str, Any], n: int) -> int | None:
    value = record.get("label")
    if value is None or value == "":  # the test split is published without labels
        return None
    if isinstance(value, bool) or not str(value).isdecimal() or not int(value) < n:
        raise InputError(f'expected a "label" from 0 to {n - 1}, got {value!r}')
    return int(value)


def rows(question: Question, tokenizer: Encodes, longest: int) -> list[tuple[list[int], int]]:
    """Each choice as ids, context first, and the number of context ids; the context loses what does not fit.

    A choice is tokenised together with its context; spaces at the context's end belong to the choice. longest is the
    model's context: the last token is predicted and never read. Raises InputError.
    """
    context = question.context.rstrip()
    found = []
    for choice in question.choices:
        before = tokenizer.encode(context)
        ids = tokenizer.encode(context + question.context[len(context) :] + choice)
        if not before:
            if tokenizer.eos_id is None:
                raise InputError("expected text before the choices, got none")
            before, ids = [tokenizer.eos_id], [tokenizer.eos_id, *ids]
        n = len(ids) - len(before)
        if not 0 < n <= longest:
            raise InputError(f"expected a choice of 1 to {longest} tokens, which is all this model reads, got {n}")
        ids = ids[-(longest + 1) :]
        found.append((ids, len(ids) - n))
    return found


def answer(
    model: Predicts,
    questions: Iterable[tuple[Question, list[tuple[list[int], int]]]],
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[list[Answer]]:
    """The answers to each question, in order; `batch_size` questions share a padded batch, which changes no bit."""
    iterator = iter(questions)
    while batch := list(islice(iterator, batch_size)):
        scored = iter(_score(model, [row for _, choices in batch for row in choices], device))
        for question, choices in batch:
            answers = []
            for choice, (ids, first) in zip(question.choices, choices, strict=True):
                logprob, greedy = next(scored)
                answers.append(Answer(logprob, len(ids) - first, len(choice.strip().encode()), greedy))
            yield answers


@torch.inference_mode()
def _score(
    model: Predicts, rows: Sequence[tuple[list[int], int]], device: torch.device | str
) -> list[tuple[float, bool]]:
    """log p of ids[first:], and whether each of them is the likeliest, for rows (ids, first)."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows], device=device)
    begin = min(first for _, first in rows)
    found, best = model.predictions(ids, begin)
    likeliest = best == ids[:, begin:]
    parts = [(n, slice(first - begin, len(row) - begin)) for n, (row, first) in enumerate(rows)]
    return [(math.fsum(found[n, part].tolist()), bool(likeliest[n, part].all())) for n, part in parts]


def describe(question: Question, answers: Sequence[Answer]) -> dict[str, Any]:
    """One question as a JSON record; "correct" is None without a label."""
    picks = {rule: max(range(len(answers)), key=lambda n: answers[n].score(rule)) for rule in RULES}
    cloze = len(answers) == 1
    correct: dict[str, bool | None] = (
        {"greedy": answers[0].greedy}
        if cloze
        else {rule: None if question.label is None else pick == question.label for rule, pick in picks.items()}
    )
    return {
        "id": question.id,
        "label": question.label,
        "logprobs": [a.logprob for a in answers],
        "n_tokens": [a.n_tokens for a in answers],
        "n_bytes": [a.n_bytes for a in answers],
        **({} if cloze else {"picks": picks}),
        "correct": correct,
    }


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies over the records of `describe`, with Wilson's 95 % interval (1927), and the perplexity per cloze."""
    labelled = [record for record in records if "error" not in record and None not in record["correct"].values()]
    summary: dict[str, Any] = {"n": len(labelled), "n_unlabelled": 0, "n_errors": 0, "accuracy": {}}
    for record in records:
        summary["n_errors"] += "error" in record
        summary["n_unlabelled"] += "error" not in record and None in record["correct"].values()
    for rule in (*RULES, "greedy"):
        counted = [record["correct"][rule] for record in labelled if rule in record["correct"]]
        if counted:
            summary["accuracy"][rule] = {
                "value": sum(counted) / len(counted), **wilson(sum(counted), len(counted)), "n": len(counted)
            }  # fmt: skip
    several = [1 / len(record["logprobs"]) for record in labelled if "greedy" not in record["correct"]]
    summary["chance"] = math.fsum(several) / len(several) if several else None
    cloze = [record["logprobs"][0] for record in labelled if "greedy" in record["correct"]]
    summary["cloze_ppl"] = math.exp(min(700.0, -math.fsum(cloze) / len(cloze))) if cloze else None
    return summary


def wilson(hits: int, n: int, z: float = 1.959964) -> dict[str, float]:
    """Interval of a proportion of n >= 1 independent trials."""
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {"low": max(0.0, middle - half), "high": min(1.0, middle + half)}
