"""Cleaning: what normalising changes, what is dropped and why, duplicates near and far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmcli.data import cleaning
from llmcli.data.cleaning import Report, Rules
from llmcli.errors import InputError


def run(records: list[Any], **rules: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What stays, and how many were dropped for which reason."""
    chosen = Rules(**rules)
    report = Report(chosen)
    kept = list(cleaning.clean([(f"r:{n}", record) for n, record in enumerate(records, 1)], chosen, report))
    assert report.n_in == len(records) == len(kept) + sum(one["n"] for one in report.dropped.values())
    assert report.n_out == len(kept)
    return kept, {reason: one["n"] for reason, one in report.dropped.items()}


def test_normalising() -> None:
    assert cleaning.normalize("\ufeff cafe\u0301 \t\r\nx\x00\x1b\ry  \n\n z ") == "café\nx\ny\n\n z"
    assert run(["a \r\nb"])[0] == [{"text": "a\nb"}]
    assert run(["a \r\nb"], normalize=False)[0] == [{"text": "a \r\nb"}]


def test_spaces_of_prompts_and_completions_stay() -> None:
    record = {"prompt": "Q: a \nA:", "completion": " b ", "id": 7}
    assert run([record])[0] == [record]


def test_reasons() -> None:
    kept, dropped = run(
        [
            "long enough",
            " \n",
            "short",
            "long enough " * 9,
            "12345678.90",
            "long ☃ enough",
            {"text": "Long  ENOUGH", "id": 1},
        ],
        min_chars=8,
        max_chars=50,
        min_letters=0.5,
        charset="latin-1",
    )
    assert kept == [{"text": "long enough"}]
    assert dropped == {
        "empty": 1,
        "too short": 1,
        "too long": 1,
        "too few letters": 1,
        "not in latin-1": 1,
        "duplicate": 1,
    }


def text(seed: int, n: int = 60) -> list[str]:
    return [f"word{i}" for i in np.random.default_rng(seed).integers(0, 500, n)]


@pytest.mark.parametrize(("changed", "stays"), [(1, False), (40, True)])
def test_near_duplicates(changed: int, stays: bool) -> None:
    first, other = text(0), text(0)
    other[:changed] = text(1)[:changed]
    shared = cleaning.jaccard(*(cleaning.shingles(" ".join(words)) for words in (first, other)))
    assert (shared < 0.8) == stays
    kept, dropped = run([" ".join(first), " ".join(other)])
    assert len(kept) == 1 + stays
    assert dropped == ({} if stays else {"near duplicate": 1})
    assert len(run([" ".join(first), " ".join(other)], near=0.0)[0]) == 2


def test_finds_what_comparing_every_pair_finds() -> None:
    texts = []
    for seed in range(40):
        words = text(seed % 20)
        words[: seed // 3] = text(100 + seed)[: seed // 3]
        texts.append(" ".join(words))
    expected: list[str] = []
    for one in texts:
        if all(cleaning.jaccard(cleaning.shingles(one), cleaning.shingles(two)) < 0.8 for two in expected):
            expected.append(one)
    kept, dropped = run(texts)
    assert [record["text"] for record in kept] == expected
    assert dropped["near duplicate"] == 40 - len(expected) > 0


def test_messages_are_compared_by_what_they_say() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert run([{"messages": talk}, {"messages": talk}])[1] == {"duplicate": 1}


@pytest.mark.parametrize(
    "record",
    [{}, {"text": 1}, {"prompt": "a"}, {"messages": "a"}, {"messages": [{"role": "user"}]}, {"text": "\ud800"}],
)
def test_refuses_records_without_text(record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^r:1: "):
        run([record])
