"""Constrained texts match: by Python's own regular expressions and by a validator of schemas, whatever the tokens."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from llmcli.errors import InputError, ResourceError
from llmcli.generation.beam_search import beam_search
from llmcli.generation.constraint import Constraint, Constraints, Guide
from llmcli.generation.loop import Event, Request, generate
from llmcli.generation.sampling import Sampling
from llmcli.tokenizer import Tokenizer
from tests.tiny import write_sentencepiece, write_tokenizer, write_word_ends
from tests.toy import Toy

GREEDY, HOT = Sampling(), Sampling(temperature=1.5, top_k=200, top_p=0.99, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One of each spelling that decoders use."""
    made = {}
    for name, write in (("bytes", write_tokenizer), ("blocks", write_sentencepiece), ("ends", write_word_ends)):
        directory = tmp_path_factory.mktemp(name)
        write(directory)
        made[name] = Tokenizer.open(directory)
    made["endless"] = Tokenizer(made["bytes"].backend)
    return made


@pytest.fixture(scope="module")
def constraints(tokenizers: dict[str, Tokenizer]) -> dict[str, Constraints]:
    return {name: Constraints(tokenizer, anew=False) for name, tokenizer in tokenizers.items()}


def write(tokenizer: Tokenizer, constraint: Constraint | None, seed: int = 0, **more: Any) -> tuple[str, Event]:
    """A text of a random model, and its last event."""
    model = Toy(tokenizer.vocab_size, seed)
    request = Request([3, 5, 4], constraint=constraint, seed=seed, **{"max_tokens": 40, **more})
    events = list(generate(model, [request], tokenizer, context=500))
    return "".join(event.text for event in events), events[-1]


def patterns() -> st.SearchStrategy[str]:
    """Patterns that Python and the library read alike."""
    atoms = st.sampled_from(["a", "b", "0", "é", " ", r"\.", "/", "[a-c]", "[^a]", "[0-9]", ".", "the", "sea"])
    counts = st.sampled_from(["", "?", "*", "+", "{2}", "{0,3}"])

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
            st.tuples(inner, counts).map(lambda two: f"({two[0]}){two[1]}"),
        )

    return st.recursive(st.tuples(atoms, counts).map("".join), grow, max_leaves=6)


@settings(max_examples=60)
@given(pattern=patterns(), seed=st.integers(0, 99), name=st.sampled_from(["bytes", "blocks", "endless"]))
def test_texts_match_a_pattern(
    tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints], pattern: str, seed: int, name: str
) -> None:
    try:
        constraint = constraints[name].of({"regex": pattern})
    except InputError:  # it matches the empty text alone, or é is unknown
        event("refused")
        return
    text, last = write(tokenizers[name], constraint, seed, sampling=HOT if seed % 2 else GREEDY, max_tokens=25)
    assert last.matches == (re.fullmatch(pattern, text) is not None) or "\ufffd" in text
    assert last.matches or last.finish_reason in (["length"] if name != "blocks" else ["length", "dead_end"])


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    small = st.integers(0, 3)
    plain = st.one_of(
        st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, small, small),
        st.builds(lambda step: {"type": "integer", "multipleOf": step + 1}, small),
        st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, small),
        st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, small, small),
        st.sampled_from(
            [
                {"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": "boolean"}, {"type": ["null", "boolean"]},
                {"const": {"a": [1, "é"]}}, {"enum": ["sea", 1, None]}, {"maxLength": 2},
            ]
        ),
    )  # fmt: skip
    names = st.sampled_from(["a", "sea", 'x"/~', "é"])

    def grow(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        closed = st.one_of(st.just(False), inner)
        return st.one_of(
            st.builds(lambda one, n: {"type": "array", "items": one, "minItems": n, "maxItems": n + 1}, inner, small),
            st.builds(lambda one, rest: {"type": "array", "prefixItems": [one], "items": rest}, inner, closed),
            st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
            st.builds(
                lambda parts, rest: {
                    "type": "object", "properties": parts, "required": [*parts][:1], "additionalProperties": rest,
                },
                st.dictionaries(names, inner, max_size=2),
                closed,
            ),
        )  # fmt: skip

    return st.recursive(plain, grow, max_leaves=4)


@settings(max_examples=60)
@given(schema=schemas(), seed=st.integers(0, 99), name=st.sampled_from(["bytes", "endless"]))
def test_texts_are_json_of_a_schema(
    tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints], schema: Any, seed: int, name: str
) -> None:
    constraint = constraints[name].of({"json_schema": schema})
    text, last = write(tokenizers[name], constraint, seed, sampling=HOT if seed % 2 else GREEDY, max_tokens=60)
    assume("\ufffd" not in text)
    assert last.matches or last.finish_reason == "length"
    if last.matches:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("name", ["bytes", "blocks", "ends", "endless"])
def test_short_ones_end_by_themselves(
    tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints], name: str
) -> None:
    said = set()
    for seed in range(8):
        constraint = constraints[name].of({"regex": "yes|no|[a-f]{4}"})
        text, last = write(tokenizers[name], constraint, seed, sampling=HOT)
        assert (last.finish_reason, last.matches) == ("stop", True)
        assert re.fullmatch("yes|no|[a-f]{4}", text)
        said.add(text)
    assert len(said) > 2


def test_special_tokens_are_no_text(tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints]) -> None:
    constraint = constraints["bytes"].of({"regex": "(?s).{5,}"})
    assert constraint is not None
    end = tokenizers["bytes"].eos_id
    assert not constraint.begin().allowed[end]
    guide = constraint.begin()
    for token in tokenizers["bytes"].encode("abcde"):
        guide.take(token)
    assert guide.allowed[end]
    assert guide.matches
    # Written out it is a token that would end the text, so it cannot be part of one.
    with pytest.raises(InputError, match="no token"):
        Constraints(tokenizers["blocks"], anew=False).of({"regex": "</s>"})


def test_a_space_that_is_not_shown_does_not_count(tokenizers: dict[str, Tokenizer]) -> None:
    anew = Constraints(tokenizers["blocks"], anew=True)
    for setting, expected in (({"regex": "[a-c]{2}"}, "[a-c]{2}"), ({"json_schema": {"const": 12}}, "12")):
        text, last = write(tokenizers["blocks"], anew.of(setting), sampling=HOT, anew=True)
        assert last.matches
        assert re.fullmatch(expected, text)


def test_where_no_token_goes_on_the_text_ends(
    tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints]
) -> None:
    text, last = write(tokenizers["blocks"], constraints["blocks"].of({"regex": "ab{3}é"}))
    assert (text, last.finish_reason, last.matches) == ("abbb", "dead_end", False)


def test_a_batch_is_its_rows_alone(tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints]) -> None:
    tokenizer, made = tokenizers["bytes"], constraints["bytes"]
    requests = [
        Request([3], HOT, seed=1, constraint=made.of({"regex": "[a-z]{3,30}"}), logprobs=1, num_samples=2),
        Request([5, 9], HOT, seed=2, max_tokens=9),
        Request([8], constraint=made.of({"json_schema": {"type": "array", "items": {"type": "boolean"}}})),
    ]
    model = Toy(tokenizer.vocab_size)

    together = list(generate(model, requests, tokenizer, context=90))
    for n, request in enumerate(requests):
        alone = list(generate(model, [request], tokenizer, context=90))
        for sample in range(request.num_samples):
            rows = [(e.token, e.text, e.logprob, e.matches) for e in alone if e.sample == sample]
            assert rows == [
                (e.token, e.text, e.logprob, e.matches) for e in together if (e.request, e.sample) == (n, sample)
            ]


@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_likeliest_text_that_matches(
    tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints], seed: int
) -> None:
    tokenizer, model = tokenizers["blocks"], Toy(tokenizers["blocks"].vocab_size, seed)
    constraint = constraints["blocks"].of({"regex": "[a-c]{1,3}|ab{4}é"})
    assert constraint is not None
    found: list[tuple[float, str]] = []

    def grow(guide: Guide, chosen: list[int], total: float) -> None:
        logprobs = torch.log_softmax(model.start(torch.tensor([[3, 5, *chosen]]))[0][0].double(), -1).tolist()
        if guide.matches and not guide.ended:
            found.append((total + logprobs[1], tokenizer.decode(chosen)))
        elif guide.matches:
            found.append((total, tokenizer.decode(chosen)))
        for token in guide.allowed.nonzero()[:, 0].tolist() if not guide.ended else ():
            if token != tokenizer.eos_id:
                after = guide.fork()
                after.take(token)
                grow(after, [*chosen, token], total + logprobs[token])

    grow(constraint.begin(), [], 0.0)
    request = Request([3, 5], constraint=constraint)
    events = list(beam_search(model, request, tokenizer, beams=300, length_penalty=0.0, context=90))
    assert events[-1].matches
    assert "".join(event.text for event in events) == max(found)[1]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"regex": "a(b"}, r"unclosed group, at character 1 of 'a\(b'"),
        ({"regex": r"(a)\1"}, "backreferences are not supported, at character 3"),
        ({"regex": r"\bsea"}, "lookarounds not supported"),
        ({"regex": "a\n(?=b)"}, "look-around"),
        ({"regex": "(a?){5000}a{5000}"}, r"too complex \(lexer error: too many expressions constructed\)$"),
        ({"regex": 5}, "expected a regular expression, got 5"),
        ({"regex": "a", "json_schema": {}}, "got both"),
        ({"json_schema": [1]}, r"expected a JSON object, got \[1\]"),
        ({"json_schema": {"properties": {"a/b": {"not": {}}}}}, "at #/properties/a~1b: expected keywords .* got 'not'"),
        ({"json_schema": {"anyOf": [{}, {"type": "strin"}]}}, "at #/anyOf/1: Invalid type: strin"),
        ({"json_schema": {"items": {"pattern": "(?=a)"}}}, "at #/items: look-around"),
        ({"json_schema": {"items": [{"format": "color"}]}}, "at #/items/0: Unknown format: color"),
        ({"json_schema": {"type": "string", "maxlength": 3}}, "got 'maxlength'"),
        ({"json_schema": {"x-guidance": {"lenient": True}}}, "got 'x-guidance'"),
        ({"json_schema": {"items": {"minProperties": 2}}}, "at #/items: .* at most 1, got 2"),
        ({"json_schema": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}}, "at #: oneOf constraints"),
        ({"json_schema": {"$ref": "https://example.com/a.json"}}, "at #: Resource"),
        ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "no token"),
        ({"json_schema": {"minimum": float("nan")}}, "expected JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_with_its_place(
    constraints: dict[str, Constraints], setting: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        constraints["bytes"].of(setting)


def test_a_schema_as_deep_as_a_chain_is_refused(constraints: dict[str, Constraints]) -> None:
    schema: dict[str, Any] = {}
    for _ in range(500):
        schema = {"items": schema}
    with pytest.raises(InputError, match="at most 100 levels"):
        constraints["bytes"].of({"json_schema": schema})


def test_a_key_has_one_spelling(tokenizers: dict[str, Tokenizer], constraints: dict[str, Constraints]) -> None:
    constraint = constraints["bytes"].of({"json_schema": {"type": "object", "properties": {"a": {"type": "null"}}}})
    assert constraint is not None
    guide = constraint.begin()
    for token in tokenizers["bytes"].encode('{"\\'):
        assert guide.allowed[token]
        guide.take(token)
    assert not guide.allowed[tokenizers["bytes"].encode("u")[0]]


def test_a_stop_text_beside_it_is_refused(constraints: dict[str, Constraints]) -> None:
    with pytest.raises(InputError, match="expected none beside"):
        Request([1], stop=["x"], constraint=constraints["bytes"].of({"regex": "a"}))


def test_without_the_library_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ResourceError, match=re.escape("pip install 'llmcli[constrain]'")):
        Constraints(Tokenizer.open(tmp_path), anew=False).of({"regex": "a"})
