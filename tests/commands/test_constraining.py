"""--regex and --json-schema through the command line: texts that match, exit 3 where they do not, receipts, records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import Result
from tests.marks import kernels_only

Shell = Callable[..., Result]
SCHEMA = {
    "type": "object",
    "properties": {"sea": {"enum": ["calm", "wild"]}, "ships": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sea", "ships"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "sea.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_a_pipe_ends_in_json_of_a_schema(shell: Shell, invoke: Shell, tiny_gpt2: Path, schema: Path) -> None:
    line = f"llmcli generate -m {tiny_gpt2} --temperature 1 -n 60"
    result = shell(f"echo 'The sea' | {line} --json-schema sea.json | cat")
    assert (result.code, result.err) == (0, "")
    jsonschema.validate(json.loads(result.out), SCHEMA)
    text = schema.read_text()
    assert invoke(f"{line.removeprefix('llmcli ')} --json-schema '{text}'", stdin=b"The sea\n").out == result.out


def test_a_text_that_was_cut_is_no_success(invoke: Shell, tiny_gpt2: Path, schema: Path, tmp_path: Path) -> None:
    line = f"generate -m {tiny_gpt2} x -n 3 --json-schema sea.json"
    plain = invoke(line)
    assert plain.code == 3
    assert plain.err == (
        "error: expected a text that matches, got one that was cut short (length); "
        "a larger --max-tokens leaves room for the rest\n"
    )
    assert invoke(f"{line} -o text").code == 3
    assert not (tmp_path / "text").exists()  # a text cannot say that it was cut short
    assert invoke(f"{line} --json -o document").code == 3
    (choice,) = json.loads((tmp_path / "document").read_text())["choices"]
    assert (choice["matches"], choice["finish_reason"]) == (False, "length")


def test_a_match_that_could_go_on_is_one(invoke: Shell, tiny_gpt2: Path) -> None:
    result = invoke(f"generate -m {tiny_gpt2} x -n 3 --regex [a-z]+ --json")
    (choice,) = json.loads(result.out)["choices"]
    assert (result.code, choice["matches"], choice["finish_reason"]) == (0, True, "length")
    assert re.fullmatch("[a-z]+", choice["text"])
    assert "matches" not in invoke(f"generate -m {tiny_gpt2} x -n 3 --json").out


def test_records_have_constraints_of_their_own(invoke: Shell, tiny_gpt2: Path, schema: Path) -> None:
    rows = [
        {"prompt": "The sea", "id": 1},
        {"prompt": "The sea", "json_schema": SCHEMA, "num_samples": 2, "temperature": 1},
        {"prompt": "The sea", "regex": "a(b"},
        {"prompt": "x", "stop": "e"},
    ]
    stdin = "".join(json.dumps(row) + "\n" for row in rows).encode()
    line = f"generate -m {tiny_gpt2} --jsonl - -n 60 --regex (yes|no)"
    results = [invoke(f"{line} --batch-size {size}", stdin=stdin) for size in (1, 4)]
    documents = [[json.loads(row) for row in result.out.splitlines()] for result in results]
    assert [result.code for result in results] == [0, 0]
    for one, two in zip(*documents, strict=True):
        assert one.get("choices") == two.get("choices")
    first, second, third, fourth = documents[0]
    assert first["choices"][0]["text"] in ("yes", "no")
    for choice in second["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
    assert "unclosed group, at character 1" in third["error"]["message"]
    assert "stop: expected none" in fourth["error"]["message"]
    cut = invoke(line.replace("-n 60", "-n 1").replace("(yes|no)", "[a-c]{9}"), stdin=stdin)
    assert cut.code == 3
    assert "expected texts that match, got 3 that were cut short" in cut.err


def test_beams_find_a_text_that_matches(invoke: Shell, tiny_gpt2: Path, schema: Path) -> None:
    line = f"generate -m {tiny_gpt2} x -n 40 --json-schema sea.json --json --receipt run.json"
    greedy, beams = (
        json.loads(invoke(f"{line} {flags} --logprobs 0").out)["choices"][0] for flags in ("", "--beams 4")
    )
    jsonschema.validate(json.loads(beams["text"]), SCHEMA)
    assert (beams["matches"], beams["finish_reason"]) == (True, "stop")
    likelihood = [sum(row["logprobs"]["token_logprobs"]) / len(row["logprobs"]["tokens"]) for row in (greedy, beams)]
    assert likelihood[1] >= likelihood[0]
    assert invoke("replay run.json").code == 0
    assert invoke(f"{line.replace('-n 40', '-n 3')} --beams 4").code == 3


@kernels_only
@pytest.mark.parametrize("how", ["", "--temperature 1 --top-k 40"])
def test_guesses_change_no_byte(invoke: Shell, tiny_gpt2: Path, how: str) -> None:
    line = f"generate -m {tiny_gpt2} 'sea sea sea' -n 30 --regex '(sea ){{3,5}}[a-z]{{2,9}}' {how} --json"
    line = line.replace("{{", "{").replace("}}", "}")
    plain = json.loads(invoke(line).out)
    for guesses in ("--lookup 4", f"--draft-model {tiny_gpt2}", "--prompt-cache cache", "--ctx-overflow slide"):
        result = invoke(f"{line} {guesses}")
        assert result.code in (0, 3), result.err
        assert json.loads(result.out)["choices"] == plain["choices"]


def test_a_receipt_holds_the_constraint(invoke: Shell, tiny_gpt2: Path, schema: Path, tmp_path: Path) -> None:
    line = f"generate -m {tiny_gpt2} x -n 60 --temperature 1 --json-schema sea.json --receipt run.json"
    assert invoke(line).code == 0
    receipt = json.loads((tmp_path / "run.json").read_text())
    assert receipt["request"]["json_schema"] == SCHEMA
    assert "llguidance" in receipt["versions"]
    assert invoke("replay run.json").code == 0
    receipt["request"]["json_schema"]["properties"]["sea"]["enum"].append("cold")
    (tmp_path / "run.json").write_text(json.dumps(receipt))
    changed = invoke("replay run.json")
    assert changed.code == 5
    assert "error: constraint: expected SHA-256" in changed.err


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--regex a(b", 2, "regex: unclosed group, at character 1 of 'a(b'"),
        ("--regex a --json-schema {}", 2, "expected --regex or --json-schema, got both"),
        ("--regex a --beams 2 --num-samples 2", 2, "num_samples: a beam search for a text that must match gives one"),
        ("--regex a --stop e", 2, "stop: expected none"),
        ("--json-schema nowhere.json", 5, "nowhere.json"),
        ("--json-schema '{\"a'", 2, "--json-schema: expected JSON, got something else in the text"),
        ('--json-schema \'{"items": {"not": {}}}\'', 2, "json_schema: at #/items: expected keywords"),
    ],
)
def test_errors_are_one_line(invoke: Shell, tiny_gpt2: Path, flags: str, code: int, said: str) -> None:
    result = invoke(f"generate -m {tiny_gpt2} x -n 4 {flags}")
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert result.err.count("\n") == 1
