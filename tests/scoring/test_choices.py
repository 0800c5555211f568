"""Questions as published, rows of ids, and accuracies, against sums made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading
from llmcli.errors import InputError
from llmcli.scoring import choices
from llmcli.scoring.choices import Answer, Question
from tests.marks import kernels_only

HELLASWAG: dict[str, Any] = {
    "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": 3,
    "endings": ["is using wrap.", "is ripping  tiles. [step] off", "is holding [title] a cube.", "starts pulling."],
    "source_id": "activitynet~v_-JhWjGDPHMY",
}  # fmt: skip


def parse(record: object) -> Question:
    return choices.parse(json.dumps(record).encode())


def test_hellaswag_as_the_harness_reads_it() -> None:
    question = parse(HELLASWAG)
    assert question.context == "Roof shingle removal: A man is sitting on a roof. He"
    endings = (" is using wrap.", " is ripping tiles. off", " is holding. a cube.", " starts pulling.")
    assert question.choices == endings
    assert (question.label, question.id) == (3, 24)
    assert parse(HELLASWAG | {"label": ""}).label is None  # the test split


def test_lambada_and_plain_questions() -> None:
    assert parse({"text": "the boy said to the captain"}) == Question("the boy said to the", (" captain",), 0)
    assert choices.plain(b"the boy said to the captain \n") == Question("the boy said to the", (" captain",), 0)
    plain = parse({"id": "q", "prompt": "2+2=", "choices": ["4", "5"], "label": "1"})
    assert plain == Question("2+2=", ("4", "5"), 1, "q")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "expected a JSON object"), (b"[]", "got list"), (b"\xff", "UTF-8"), (b"{}", "LAMBADA"),
        (b'{"text": "word"}', "ends with a space and a word"), (b'{"text": 3}', 'a "text" of text, got 3'),
        (b'{"prompt": "a", "choices": []}', "list of texts"),
        (b'{"prompt": "a", "choices": [" "]}', "none of them empty"),
        (b'{"prompt": "a", "choices": ["b"], "label": 1}', "from 0 to 0, got 1"),
        (b'{"prompt": "a", "choices": ["b"], "label": true}', "got True"),
        (b'{"choices": ["b"]}', 'a "prompt" of text'),
    ],
)  # fmt: skip
def test_records_that_cannot_be_used(line: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choices.parse(line)


@pytest.mark.parametrize(("line", "words"), [(b"word\n", "a space and a word"), (b"a \xff", "UTF-8")])
def test_plain_lines_that_cannot_be_used(line: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choices.plain(line)


@pytest.fixture(scope="module")
def tiny(tiny_gpt2: Path) -> loading.Loaded:
    return loading.load(tiny_gpt2)


def test_rows_are_the_whole_text_cut_at_the_context(tiny: loading.Loaded) -> None:
    question = Question("The sea was ", ("calm", "at the old ship"), None)
    encode = tiny.tokenizer.encode
    for (ids, first), text in zip(choices.rows(question, tiny.tokenizer, 64), question.choices, strict=True):
        assert ids == encode("The sea was " + text)
        assert ids[:first] == encode("The sea was")  # the space belongs to the choice
    whole = encode("The sea was at the old ship")
    short = choices.rows(question, tiny.tokenizer, len(whole) - 3)[1]
    assert short == (whole[2:], len(encode("The sea was")) - 2)
    with pytest.raises(InputError, match="1 to 1 tokens"):
        choices.rows(question, tiny.tokenizer, 1)
    ids, first = choices.rows(Question("", ("sea",), None), tiny.tokenizer, 64)[0]
    assert (ids[0], first) == (tiny.tokenizer.eos_id, 1)


@kernels_only
@torch.inference_mode()
def test_answers_are_sums_of_the_models_logprobs_in_any_batch(tiny: loading.Loaded) -> None:
    questions = [
        Question("The sea was", (" calm", " far, and the captain looked"), 0),
        Question("We shall go where the wind", (" goes",), 0),
        Question("A", ("x", "yyyyyyyy", "z"), 2),
    ]
    rows = [choices.rows(question, tiny.tokenizer, 64) for question in questions]
    together = list(choices.answer(tiny.model, zip(questions, rows, strict=True), batch_size=3))
    for size in (1, 2):
        assert list(choices.answer(tiny.model, zip(questions, rows, strict=True), batch_size=size)) == together
    for answers, members in zip(together, rows, strict=True):
        for got, (ids, first) in zip(answers, members, strict=True):
            logits = tiny.model(torch.tensor([ids])).double()[0]
            expected = [float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(first, len(ids))]
            assert got.logprob == pytest.approx(sum(expected), abs=1e-4)
            assert got.n_tokens == len(expected)
            assert got.greedy == all(int(logits[t - 1].argmax()) == ids[t] for t in range(first, len(ids)))
    assert [answer.n_bytes for answer in together[0]] == [4, len("far, and the captain looked")]


def test_the_three_rules_pick_by_different_lengths() -> None:
    answers = [Answer(-3.0, 1, 3, False), Answer(-4.0, 2, 3, False), Answer(-5.0, 2, 10, False)]
    record = choices.describe(Question("", ("a", "b", "c"), 1), answers)
    assert record["picks"] == {"raw": 0, "token": 1, "byte": 2}
    assert record["correct"] == {"raw": False, "token": True, "byte": False}


def test_summary_counts_what_has_a_label() -> None:
    two = [Answer(-1.0, 1, 1, True), Answer(-2.0, 1, 1, False)]
    records = [
        choices.describe(Question("", ("a", "b"), 0), two),
        choices.describe(Question("", ("a", "b"), 1), two),
        choices.describe(Question("", ("a", "b"), None), two),
        choices.describe(Question("", ("a",), 0), two[:1]),
        {"id": None, "error": {"message": "", "line": 4}},
    ]
    summary = choices.summarise(records)
    assert (summary["n"], summary["n_unlabelled"], summary["n_errors"], summary["chance"]) == (3, 1, 1, 0.5)
    assert {rule: row["value"] for rule, row in summary["accuracy"].items()} == {
        "raw": 0.5, "token": 0.5, "byte": 0.5, "greedy": 1.0
    }  # fmt: skip
    assert summary["cloze_ppl"] == pytest.approx(math.e)


def test_wilson_against_published_figures() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)):
        interval = choices.wilson(hits, n)
        assert (round(interval["low"], 4), round(interval["high"], 4)) == (low, high)
