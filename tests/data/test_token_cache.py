"""The cache of tokens: the same ids from it as without it, shards by content, damage found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmcli.data import corpus, token_cache
from llmcli.data.batches import Shards, Windows
from llmcli.data.corpus import Document
from llmcli.tokenizer import Tokenizer
from tests.tiny import TEXT

DOCUMENTS = [Document(str(n), f"{n} {TEXT}") for n in range(5)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return corpus.train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(autouse=True)
def two_documents_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "SHARD_CHARACTERS", 2 * len(TEXT))


def test_the_same_ids_and_only_what_changed_is_made(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain = torch.cat([ids for _, ids in corpus.encode(tokenizer, DOCUMENTS)])
    counts = []
    for documents in (DOCUMENTS, DOCUMENTS, [*DOCUMENTS, Document("more", TEXT)]):
        done: list[int] = []
        stream, outcome = token_cache.encode(tokenizer, documents, tmp_path, done.append)
        counts.append((outcome.reused, outcome.written))
        assert torch.equal(stream[: len(plain)], plain)
        assert done[-1] == sum(len(document.text) for document in documents)
        assert not outcome.problems
    assert counts == [(0, 3), (3, 0), (2, 1)]
    assert len(list(tmp_path.iterdir())) == 4
    other = corpus.train_tokenizer(DOCUMENTS, 290)
    assert token_cache.encode(other, DOCUMENTS, tmp_path)[1].reused == 0
    stream, outcome = token_cache.encode(tokenizer, DOCUMENTS, None)
    assert torch.equal(stream[:], plain)
    assert outcome == token_cache.Outcome(0, 0, [])


def test_texts_are_not_joined_under_one_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    token_cache.encode(tokenizer, [Document("a", "one two")], tmp_path)
    _, outcome = token_cache.encode(tokenizer, [Document("a", "one "), Document("b", "two")], tmp_path)
    assert outcome.reused == 0


@pytest.mark.parametrize("damage", [lambda raw: raw[:-4], lambda raw: raw[:-1] + b"\x01", lambda raw: raw[:9]])
def test_a_damaged_shard_is_made_anew(tokenizer: Tokenizer, tmp_path: Path, damage: object) -> None:
    whole, _ = token_cache.encode(tokenizer, DOCUMENTS, tmp_path)
    ids = whole[:].clone()
    shard = sorted(tmp_path.iterdir())[0]
    before = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(damage(before))
    stream, outcome = token_cache.encode(tokenizer, DOCUMENTS, tmp_path)
    assert torch.equal(stream[:], ids)
    assert (outcome.reused, outcome.written, len(outcome.problems)) == (2, 1, 1)
    assert shard.name in outcome.problems[0]
    assert shard.read_bytes() == before


def test_a_full_disk_leaves_nothing_and_stops_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache.os, "fsync", full)
    stream, outcome = token_cache.encode(tokenizer, DOCUMENTS, tmp_path)
    assert torch.equal(stream[:], torch.cat([ids for _, ids in corpus.encode(tokenizer, DOCUMENTS)]))
    assert outcome.written == 0
    assert "No space left" in outcome.problems[0]
    assert list(tmp_path.iterdir()) == []


def test_shards_read_as_one() -> None:
    whole = torch.arange(20)
    shards = Shards([whole[:7], whole[7:8], whole[8:]])
    assert len(shards) == 20
    for where in (slice(0, 20), slice(3, 9), slice(7, 8), slice(8, 20), slice(-1, None), slice(None, -1), slice(5, 5)):
        assert torch.equal(shards[where], whole[where])
    one, other = (Windows(stream, 3, 0).batch(0, 5) for stream in (whole, shards))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
