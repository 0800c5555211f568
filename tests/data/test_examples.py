"""Examples: which records are read, which are refused and where, which tokens are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli.chat_template import SIMPLE, ChatTemplate
from llmcli.data import batches, examples
from llmcli.data.batches import IGNORED
from llmcli.data.corpus import Document
from llmcli.data.examples import Example, Labelled
from llmcli.errors import InputError
from llmcli.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_gpt2: Path) -> Tokenizer:
    return Tokenizer.open(tiny_gpt2)


def lesson(record: Any) -> Document | Example:
    return examples.lesson(record, "file:1", lambda: ChatTemplate(SIMPLE, "<|endoftext|>").spans)


def rows(tokenizer: Tokenizer, lessons: list[Any], ctx_size: int = 64) -> list[batches.Row]:
    return [row for _, some, _ in examples.encode(tokenizer, lessons, ctx_size) for row in some]


def learned(tokenizer: Tokenizer, row: batches.Row) -> str:
    return tokenizer.decode(row.targets[row.targets != IGNORED].tolist())


def whole(tokenizer: Tokenizer, row: batches.Row) -> str:
    return tokenizer.decode([*row.inputs.tolist(), row.targets[-1].item()])


def test_only_the_completion_is_learned(tokenizer: Tokenizer) -> None:
    (row,) = rows(tokenizer, [lesson({"prompt": "The sea", "completion": " was calm"})])
    assert whole(tokenizer, row) == "The sea was calm<|endoftext|>"
    assert row.inputs[:2].tolist() == tokenizer.encode("The sea")[:2]
    assert learned(tokenizer, row) == " was calm<|endoftext|>"


def test_only_the_assistant_is_learned(tokenizer: Tokenizer) -> None:
    talk = [{"role": "user", "content": "sea"}, {"role": "assistant", "content": "ship"}]
    (row,) = rows(tokenizer, [lesson({"messages": [*talk, {"role": "user", "content": "never read"}]})])
    assert whole(tokenizer, row) == "### user\nsea\n### assistant\nship<|endoftext|>\n"
    assert learned(tokenizer, row) == "ship<|endoftext|>\n"


def test_a_long_example_keeps_its_end(tokenizer: Tokenizer) -> None:
    one = lesson({"prompt": "The sea was calm, and the old ship lay still.", "completion": " far"})
    ((n, (row,), shortened),) = examples.encode(tokenizer, [one], 5)
    assert (n, shortened, len(row.inputs)) == (1, 1, 5)
    assert learned(tokenizer, row) == " far<|endoftext|>"


def test_documents_among_examples_become_rows_that_score_every_token_once(tokenizer: Tokenizer) -> None:
    text = "The sea was calm, and the old ship lay still."
    found = rows(tokenizer, [Document("a", text)], ctx_size=4)
    assert all(len(row.inputs) <= 4 for row in found)
    assert "".join(learned(tokenizer, row) for row in found) == text


def test_batches_are_padded_with_ignored_targets(tokenizer: Tokenizer) -> None:
    records = [{"prompt": "sea" * n, "completion": " ship"} for n in (3, 1, 2)]
    every = batches.Rows(rows(tokenizer, [lesson(record) for record in records]), seed=0)
    inputs, targets = every.batch(0, 3)
    lengths = [int((row != IGNORED).nonzero().max()) + 1 for row in targets]
    assert lengths == sorted(lengths)
    assert inputs.shape == targets.shape == (3, lengths[-1])
    for row, length in enumerate(lengths):
        assert not inputs[row, length:].any()
        assert (targets[row, length:] == IGNORED).all()
        wanted = targets[row, targets[row] != IGNORED].tolist()
        assert tokenizer.decode(wanted) == " ship<|endoftext|>"


def test_an_epoch_visits_every_row_once() -> None:
    every = batches.Rows([batches.Row(torch.tensor([0]), torch.tensor([i])) for i in range(7)], seed=3)
    epochs = [every.batch(7 * epoch, 7)[1].flatten().tolist() for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 2
    assert epochs[0] != epochs[1]
    assert every.batch(5, 4)[1].flatten().tolist() == [*epochs[0][5:], *epochs[1][:2]]


def test_token_dropout_leaves_out_other_tokens_in_every_epoch() -> None:
    whole = torch.arange(1, 1001)
    every = batches.Rows([batches.Row(whole, whole)], seed=3, token_dropout=0.25)
    epochs = [every.batch(epoch, 1) for epoch in range(2)]
    for inputs, targets in epochs:
        assert torch.equal(inputs, targets)
        assert (inputs[0, 0], inputs[0, -1]) == (1, 1000)
        assert (inputs[0].diff() > 0).all()
        assert 680 < inputs.shape[1] < 820
    assert epochs[0][0].tolist() != epochs[1][0].tolist()
    assert torch.equal(every.batch(0, 1)[0], epochs[0][0])


def test_reads_lines_and_directories(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three\\u2028still three"}\n')
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.md").write_text("not read")
    found = list(examples.read(str(tmp_path)))
    assert [record if isinstance(record, str) else record["text"] for _, record in found] == [
        "one",
        "two",
        "three\u2028still three",
    ]
    assert [name.rpartition("/")[2] for name, _ in found] == ["a.txt", "b.jsonl:1", "b.jsonl:3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"text": "a"}\n{"text": ', "x.jsonl:2: not JSON"),
        ("[1]", "x.jsonl:1: expected a JSON object, got list"),
        ("[" * 100_000, "x.jsonl:1: not JSON"),
        ("\n \n", "x.jsonl has no records"),
    ],
)
def test_refuses_lines_that_are_no_records(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(examples.split(text, "x.jsonl", jsonl=True))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "got an empty object"),
        ({"input": "a"}, "got the keys 'input'"),
        ({"prompt": "a"}, "a string under 'completion', got the keys 'prompt'"),
        ({"prompt": "a", "completion": 3}, "a string under 'completion', got int"),
        ({"prompt": "a", "completion": " "}, "'completion' is empty"),
        ({"text": ["a"]}, "a string under 'text', got list"),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"messages": "hi"}, "a list of objects"),
        ({"messages": [{"role": "user"}]}, "a list of objects"),
        ({"messages": [{"role": "user", "content": "a"}]}, "role is assistant"),
    ],
)
def test_refuses_records_that_teach_nothing(record: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^file:1: .*{words}"):
        lesson(record)


def test_labels() -> None:
    assert examples.labelled({"text": "good", "label": 1}, "x") == Labelled("x", "good", "1")
    assert examples.labelled({"text": "good", "label": "yes"}, "x").label == "yes"


@pytest.mark.parametrize("label", [True, 0.5, None, "", ["a"]])
def test_refuses_other_labels(label: Any) -> None:
    with pytest.raises(InputError, match=r"^x: expected a label"):
        examples.labelled(json.loads(json.dumps({"text": "good", "label": label})), "x")
