"""`llmcli score` in a shell: tokens with their places, hits with exit 3, colours, pages, multiple choice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.marks import kernels_only
from tests.tiny import TEXT

Run = Callable[..., Result]
QUESTIONS = [
    {"id": "a", "prompt": "The sea was", "choices": [" calm", " xylophone"], "label": 0},
    {"text": "We shall go where the wind goes"},
    {"prompt": "no choices"},
    {"ind": 3, "activity_label": "Sailing", "ctx_a": "The boy looked.", "ctx_b": "he", "endings": ["left.", "went."],
     "label": 1},
]  # fmt: skip


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.text").write_text(TEXT)
    (tmp_path / "one.txt").write_text("word\n")
    (tmp_path / "b.txt").write_text("The sea é\x1b[31m\n")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))


@pytest.fixture
def score(invoke: Run, tiny_gpt2: Path) -> Run:
    """`score("a.txt --json")` runs `llmcli score` with the tiny model where a.txt, b.txt and q.jsonl lie."""
    return lambda arguments, **settings: invoke(f"score -m {tiny_gpt2} {arguments}", **settings)


def test_a_gate_in_a_real_shell(shell: Run, tiny_gpt2: Path) -> None:
    result = shell(f"llmcli score -m {tiny_gpt2} --lint --over 9bits < a.txt | sort -t: -k2n | cut -d: -f1 | uniq")
    assert (result.code, result.out) == (3, "-\n")
    assert re.fullmatch(r"error: \d+ of \d+ tokens are more than 9 bits\n", result.err)


def test_tokens_add_up_to_the_perplexity(score: Run, invoke: Run, tiny_gpt2: Path) -> None:
    figures = json.loads(invoke(f"ppl -m {tiny_gpt2} -c 32 --stride 8 a.txt --json").out)
    result = score("-c 32 --stride 8 --batch-size 3 --json a.txt")
    assert (result.code, result.err) == (0, "")
    got = json.loads(result.out)
    (document,) = got["documents"]
    assert got["schema"] == "llmcli/score/1"
    assert got["protocol"] == figures["protocol"]
    first, *logprobs = document["token_logprobs"]
    assert first is None
    assert -sum(logprobs) / len(logprobs) == pytest.approx(figures["nll_per_token"], rel=1e-12)
    assert "".join(document["tokens"]) == TEXT
    text = score("-c 32 --stride 8", stdin=TEXT.encode()).out.splitlines()
    assert text[0].split("\t")[:2] == ["1:1", "-"]
    assert [float(line.split("\t")[1]) for line in text[1:]] == pytest.approx(logprobs, abs=5e-5)
    assert "".join(json.loads(line.split("\t")[2]) for line in text) == TEXT
    assert json.loads(score("-c 32 --stride 8 --format jsonl a.txt").out)["token_ids"] == document["token_ids"]


def test_lint_is_a_gate_that_editors_read(score: Run) -> None:
    result = score("--lint --over 9bits a.txt b.txt")
    assert result.code == 3
    lines = result.out.splitlines()
    assert all(re.fullmatch(r'[ab]\.txt:\d+:\d+: \d+\.\d\d bits ".*"', line) for line in lines)
    assert "\x1b" not in result.out
    assert re.fullmatch(rf"error: {len(lines)} of \d+ tokens are more than 9 bits\n", result.err)
    hits = [json.loads(line) for line in score("--lint --over 9 --format jsonl a.txt b.txt").out.splitlines()]
    assert [f"{hit['name']}:{hit['line']}:{hit['column']}" for hit in hits] == [line.split(": ")[0] for line in lines]
    assert all(hit["bits"] > 9 for hit in hits)
    quiet = score("--lint --over 500bits a.txt")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert score("--lint --over 6.2383nats a.txt b.txt").out == score("--lint --over 9bits a.txt b.txt").out


def test_heat_colours_only_where_colour_is_wanted(score: Run, tmp_path: Path) -> None:
    plain = score("--heat b.txt")
    assert (plain.code, plain.out, plain.err) == (0, "The sea é\x1b[31m\n", "")
    coloured = score("--heat b.txt", FORCE_COLOR="1")
    assert "\x1b[48;5;" in coloured.out
    assert "\x1b[31m" not in coloured.out
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.out) == "The sea é\ufffd[31m\n"
    assert "bits:" in coloured.err
    assert score("--heat a.txt -o page.html").code == 0
    assert "<span" in (tmp_path / "page.html").read_text()
    assert score("--heat a.txt -o picture.png").code == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@kernels_only
def test_choices(score: Run) -> None:
    result = score("--choices q.jsonl --json")
    assert result.code == 0
    assert result.err.startswith('1 of 4 questions failed; line 3: expected "prompt"')
    got = json.loads(result.out)
    assert (got["schema"], got["n"], got["n_errors"]) == ("llmcli/choices/1", 3, 1)
    assert {rule: row["n"] for rule, row in got["accuracy"].items()} == {"raw": 2, "token": 2, "byte": 2, "greedy": 1}
    assert [question["id"] for question in got["questions"]] == ["a", None, None, 3]
    lines = [json.loads(line) for line in score("--choices q.jsonl --batch-size 1 --format jsonl").out.splitlines()]
    assert [{k: v for k, v in line.items() if k != "schema"} for line in lines] == got["questions"]
    assert "accuracy %" in score("--choices q.jsonl").out


@kernels_only
def test_lambada_as_text_and_as_jsonl(score: Run, tmp_path: Path) -> None:
    lines = ["we shall go where the wind goes", "the boy said to the captain"]
    (tmp_path / "lambada.txt").write_text("".join(f"{line} \n" for line in lines))
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    assert score("--choices lambada.txt").out == score("--choices lambada.jsonl").out
    assert json.loads(score("--choices lambada.txt --json").out)["accuracy"]["greedy"]["n"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("", 2, "expected at least two tokens, got 0"),
        ("nowhere.txt", 5, "does not exist"),
        ("--heat --lint a.txt", 2, "expected one of --heat, --lint and --choices"),
        ("--heat a.txt -o a.pdf", 2, "expected -o FILE.html or FILE.png"),
        ("--heat a.txt --format json", 2, "expected no --format"),
        ("--lint --over nanbits a.txt", 2, "finite number"),
        ("--over 9bits a.txt", 2, "--over: expected --lint"),
        ("--choices q.jsonl a.txt", 2, "expected neither FILES nor --stride"),
        ("--choices a.text", 2, "line 1: expected a JSON object"),
        ("--choices one.txt", 2, "ends with a space and a word"),
        ("--choices /dev/null", 2, "got none that can be used"),
        ("a.txt -c 65", 2, "at most 64 tokens"),
    ],
)
def test_what_cannot_be_used(score: Run, arguments: str, code: int, words: str) -> None:
    result = score(arguments)
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert result.err.count("\n") == 1
