"""Records of JSONL through a batch that is kept full: the same documents for every batch size, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading, records
from llmcli.generation.completions import Policy, Session
from llmcli.generation.loop import Request, generate
from tests.marks import kernels_only
from tests.models.families import Case, write

LINES = [
    {"prompt": "The sea", "max_tokens": 9},
    {"prompt": "We", "max_tokens": 2, "num_samples": 3, "temperature": 0.9},
    {"prompt": "And they went there, and it was far.", "max_tokens": 14, "id": "far"},
    {"prompt": 1},
    {"prompt": "The boy", "max_tokens": 1, "repetition_penalty": 1.4},
    {"prompt": "The wind", "max_tokens": 20, "presence_penalty": 0.5, "temperature": 1.1, "seed": 3},
    {"prompt": "far", "max_tokens": 6},
]


@pytest.fixture(scope="module")
def session(tiny_gpt2: Path) -> Session:
    return Session(loading.load(tiny_gpt2), Policy(64))


def numbered() -> Iterator[tuple[int, bytes]]:
    return ((number, json.dumps(line).encode()) for number, line in enumerate(LINES, 1))


def documents(session: Session, *arguments: Any, **settings: Any) -> list[dict[str, Any]]:
    return [record.document(session) for record in records.answer(session, *arguments, **settings)]


def bare(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("created", "timings")}


@kernels_only
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_the_same_documents_for_every_batch_size(session: Session, batch_size: int) -> None:
    one, many = (documents(session, numbered(), {}, batch_size=size) for size in (1, batch_size))
    assert [bare(document) for document in many] == [bare(document) for document in one]
    assert [document.get("error", {}).get("line") for document in many] == [None, None, None, 4, None, None, None]
    assert many[2]["id"] == "far"


def test_a_document_comes_before_the_next_line_is_needed(session: Session) -> None:
    read = []

    def lines() -> Iterator[tuple[int, bytes]]:
        for number, line in numbered():
            read.append(number)
            yield number, line

    for written, _ in enumerate(records.answer(session, lines(), {}, batch_size=1), 1):
        assert read == list(range(1, written + 1))
    assert written == len(LINES)


def test_a_record_with_an_id_has_a_seed_of_its_own(session: Session) -> None:
    def seeds(*ids: Any, run: int = 0, **more: Any) -> list[int]:
        lines = [(n, json.dumps({"prompt": "The sea", "id": id, **more}).encode()) for n, id in enumerate(ids, 1)]
        made = documents(session, iter(lines), {"seed": run, "max_tokens": 1, "temperature": 1.0})
        return [document["llmcli"]["seed"] for document in made]

    ids = ["a", 1, "1", {"x": 1, "y": [2]}, "\ud800"]
    found = seeds(*ids)
    assert len(set(found)) == len(ids)
    assert all(0 <= seed < 2**63 for seed in found)
    assert seeds(*reversed(ids)) == found[::-1]
    assert seeds({"y": [2], "x": 1}) == found[3:4]
    assert not set(seeds(*ids, run=1)) & set(found)
    assert seeds("a", None, seed=7) == [7, 7]
    assert seeds(None, run=3) == [3]
    assert found[0] == 4188972562099177556  # another value would change everyone's texts


def test_an_interrupt_answers_what_has_begun(session: Session) -> None:
    calls = iter([False] * 5)
    found = list(records.answer(session, numbered(), {}, batch_size=2, interrupted=lambda: next(calls, True)))
    assert [record.samples[0].finish_reason for record in found] == ["interrupt", "length"]
    assert [record.completed for record in found] == [False, True]


@kernels_only
@pytest.mark.parametrize("family", ["gpt2", "llama", "lstm", "t5", "bloom"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_goes_on_beside_newcomers(tmp_path: Path, family: str, dtype: str) -> None:
    write(tmp_path, Case(family))
    loaded = loading.load(tmp_path, dtype=dtype, kinds=("decoder", "encoder-decoder"))
    g = torch.Generator().manual_seed(0)
    requests = [
        Request(torch.randint(5, 40, (length,), generator=g).tolist(), max_tokens=n)
        for length, n in [(3, 9), (40, 3), (7, 12), (5, 2), (5, 8), (1, 1), (20, 9)]
    ]

    def texts(batch_size: int) -> dict[int, list[int | None]]:
        found: dict[int, list[int | None]] = {}
        for event in generate(loaded.model, requests, loaded.tokenizer, context=64, batch_size=batch_size):
            found.setdefault(event.request, []).append(event.token)
        return found

    assert texts(1) == texts(3) == texts(7)
