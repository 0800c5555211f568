"""Texts that must match a regular expression or a JSON schema: which tokens may come next, by the library llguidance.

Knows the bytes of tokens; knows neither models nor sampling. A text counts as it is shown: as bytes, whatever the
tokens that spell it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llmcli.errors import InputError, ResourceError
from llmcli.tokenizer import Tokenizer

KINDS = ("regex", "json_schema")
DEPTH = 100  # of a schema: more would be a chain of references written out

# JSON as json.dumps writes it. Without \u a key has one spelling, so that no spelling escapes its own schema.
STYLE = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "json_allowed_escapes": 'nrbtf\\"',
    "coerce_one_of": False, "lenient": False,
}  # fmt: skip
MAPS = ("properties", "patternProperties", "$defs", "definitions")  # keywords that hold schemas by name
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")  # in a list
SINGLE = ("items", "additionalItems", "additionalProperties")
ENFORCED = {
    *MAPS, *LISTS, *SINGLE, "type", "enum", "const", "$ref", "required", "minItems", "maxItems", "minProperties",
    "maxProperties", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
}  # fmt: skip
REMARKS = {
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
}  # fmt: skip


class Guide:
    """What one sequence may go on with: `allowed` (V,), unless it has `ended`; `matches` says whether it may end."""

    def __init__(self, matcher: Any, size: int, eos_id: int | None):
        self._matcher, self._eos_id = matcher, eos_id
        self.allowed = torch.zeros(size, dtype=torch.bool)
        self._look()

    def take(self, token: int) -> None:
        """Go on with a token that is allowed and not the end of the text."""
        self._matcher.consume_token(token)
        self._look()

    def fork(self) -> Guide:
        """An independent guide that goes on from here, for a hypothesis that branches."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def problem(self) -> str:
        """Which of the library's limits was reached, if any was."""
        reason = _reason(self._matcher.get_error()) if self._matcher.is_error() else ""
        return f"too complex ({reason})" if reason and not reason.startswith("NoExtension") else ""

    def _look(self) -> None:
        # A matcher whose limits are reached is in error, and allows nothing.
        self.matches = not self._matcher.is_error() and self._matcher.is_accepting()
        self.ended = self._matcher.is_stopped()
        if self.ended:
            return
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: len(self.allowed)]
        self.allowed = torch.from_numpy(mask).bool()
        self.ended = int(mask.sum()) == (self._eos_id is not None and bool(mask[self._eos_id]))


@dataclass(frozen=True)
class Constraint:
    """A pattern, or a schema as JSON, that a text must match, compiled for one vocabulary."""

    kind: str  # one of KINDS
    text: str
    _matcher: Any = field(repr=False, compare=False)
    _size: int = field(repr=False, compare=False)
    _eos_id: int | None = field(repr=False, compare=False)

    def begin(self) -> Guide:
        """A guide at the beginning of a text. Raises InputError where no text can begin."""
        guide = Guide(self._matcher.deep_copy(), self._size, self._eos_id)
        if guide.ended:
            problem = guide.problem() or "no token of this vocabulary begins a text that matches"
            raise InputError(f"{self.kind}: {problem}")
        return guide

    def setting(self) -> dict[str, Any]:
        """The setting that it was made from."""
        return {self.kind: self.text if self.kind == "regex" else json.loads(self.text)}

    def sha256(self) -> str:
        """Hash of its kind and text, in hexadecimal."""
        return hashlib.sha256(f"{self.kind} {self.text}".encode()).hexdigest()


class Constraints:
    """The constraints of one tokenizer's texts, each compiled once.

    anew: the tokens write a space before a text, which is not shown.
    """

    def __init__(self, tokenizer: Tokenizer, *, anew: bool):
        self._tokenizer, self._anew = tokenizer, anew
        self._backend: Any = None
        self._made: dict[tuple[str, str], Constraint] = {}

    def of(self, settings: Mapping[str, Any]) -> Constraint | None:
        """The constraint that settings name under one of KINDS, None without any.

        Raises InputError with the place for what is no regular expression or schema, and for a part of a schema that
        would not be enforced; ResourceError where llguidance is not installed.
        """
        given = [(kind, settings[kind]) for kind in KINDS if settings.get(kind) is not None]
        if not given:
            return None
        if len(given) > 1:
            raise InputError("expected a regex or a json_schema, got both")
        kind, value = given[0]
        text = value
        if kind == "json_schema":
            if not isinstance(value, dict):
                raise InputError(f"json_schema: expected a JSON object, got {value!r:.60}")
            text = _dump(value)
        if not isinstance(text, str) or "\0" in text:
            raise InputError(f"regex: expected a regular expression, got {value!r:.60}")
        if (kind, text) not in self._made:
            self._made[kind, text] = self._compile(kind, text, value)
        return self._made[kind, text]

    def _compile(self, kind: str, text: str, value: Any) -> Constraint:
        llguidance = require_llguidance()
        if self._backend is None:
            self._backend = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer)))
        lead = "/ / " if self._anew else ""
        if kind == "regex":
            matcher = self._matcher(llguidance.LLMatcher.grammar_from_regex(text))
            if matcher.is_error():
                raise InputError(f"regex: {_regex_problem(text, matcher.get_error())}")
            grammar = f"start: T\nT: {lead}/{llguidance.regex_to_lark(text, '')}/"
        else:
            for place, schema in subschemas(value):
                refuse(place, schema)
            problem = self._schema_problem(value)
            if problem is not None:
                # The smallest part that fails for the same reason is where it is.
                shared = {name: value[name] for name in ("$defs", "definitions") if name in value}
                parts = list(subschemas(value))[:500]
                places = (at for at, part in reversed(parts) if self._schema_problem({**shared, **part}) == problem)
                raise InputError(f"json_schema: at {next(places, '#')}: {problem}")
            grammar = f"start: {lead}json\njson: %json {_dump({**value, 'x-guidance': STYLE})}"
        if kind == "json_schema" or self._anew:
            matcher = self._matcher(grammar)
            if matcher.is_error():
                raise InputError(f"{kind}: {_reason(matcher.get_error())}")
        made = Constraint(kind, text, matcher, self._tokenizer.vocab_size, self._tokenizer.eos_id)
        for _ in range(2):  # copies share what was learnt of the pattern, and a limit may be reached by the second
            made.begin()
        return made

    def _matcher(self, grammar: str) -> Any:
        return require_llguidance().LLMatcher(self._backend, grammar, log_level=0)

    def _schema_problem(self, schema: dict[str, Any]) -> str | None:
        try:
            grammar = require_llguidance().LLMatcher.grammar_from_json_schema(_dump(schema), overrides=STYLE)
        except ValueError as error:
            return _reason(str(error))
        matcher = self._matcher(grammar)
        found = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        return _reason(found[0]) if found else None


class _Vocabulary:
    """A tokenizer as llguidance takes it: the bytes of every token. Special tokens never count as text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        added = tokenizer.backend.get_added_tokens_decoder()
        self.special_token_ids = [token for token, content in added.items() if content.special]
        self.bos_token_id = None
        self.eos_token_id = tokenizer.eos_id
        if self.eos_token_id is None:  # the library wants one: behind the vocabulary, where no logit is
            self.eos_token_id = tokenizer.vocab_size
            self.tokens.append(b"<end>")
        if self.eos_token_id not in self.special_token_ids:
            self.special_token_ids.append(self.eos_token_id)

        special = {*self.special_token_ids}
        self._ids = {data: token for token, data in enumerate(self.tokens) if data and token not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text that is the only one possible: the usual ones, else the longest that there are.

        Some tokenizers cannot begin without a space.
        """
        data = text.encode() if isinstance(text, str) else text
        usual = self._tokenizer.encode(data.decode("utf-8", "replace"))
        if b"".join(map(self._tokenizer.token_bytes, usual)) == data and not {*usual} & {*self.special_token_ids}:
            return usual
        ids, at = [], 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[at:end]])
            at = end
        return ids


def require_llguidance() -> Any:
    """llguidance. Raises ResourceError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise ResourceError(
            "expected llguidance, which holds a text to a regex or a JSON schema, got an installation without it: "
            "pip install 'llmcli[constrain]'"
        ) from None
    return llguidance


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object within a schema that is a schema, with its place as a JSON pointer; outer ones first."""
    waiting: list[tuple[str, Any, int]] = [("#", schema, 0)]
    while waiting:
        place, part, depth = waiting.pop()
        if not isinstance(part, dict):  # true, false, or what the library refuses
            continue
        if depth > DEPTH:
            raise InputError(f"json_schema: expected at most {DEPTH} levels, got more at {place:.60}…")
        yield place, part
        inside: list[tuple[str, Any]] = []
        for key, value in part.items():
            if key in MAPS and isinstance(value, dict):
                inside += [(f"{key}/{_escape(name)}", one) for name, one in value.items()]
            elif key in LISTS and isinstance(value, list):
                inside += [(f"{key}/{n}", one) for n, one in enumerate(value)]
            elif key in SINGLE:
                inside.append((key, value))
        waiting += [(f"{place}/{name}", one, depth + 1) for name, one in reversed(inside)]


def refuse(place: str, schema: Mapping[str, Any]) -> None:
    """Raise InputError for a keyword of a schema that would not be enforced."""
    for key, value in schema.items():
        if key not in ENFORCED and key not in REMARKS:
            raise InputError(f"json_schema: at {place}: expected keywords that can be enforced, got {key!r}")
        # Keys may come twice, and count once when they are read.
        if key == "minProperties" and (not isinstance(value, (int, float)) or value > 1):
            raise InputError(f"json_schema: at {place}: expected minProperties of at most 1, got {value!r:.60}")


def _regex_problem(pattern: str, message: str) -> str:
    """What the library says about a pattern, with the place that it marks."""
    lines = message.partition("regex parse error:")[2].split("\n")
    mark = next((line for line in lines if line.strip() and not line.strip("^ ")), None)
    if mark is None or "\n" in pattern:
        return f"{_reason(message)}: {pattern!r:.80}"
    return f"{_reason(message)}, at character {len(mark) - len(mark.lstrip()) - 4} of {pattern!r:.80}"


def _reason(message: str) -> str:
    """What is wrong, of a message that shows the whole grammar or pattern with it."""
    said = message.partition("(in regex): ")[2] or message
    said = said.partition("\n<state>")[0]
    told = [line.removeprefix("error: ") for line in said.split("\n") if line.startswith("error: ")]
    return " ".join((told[0] if told else said.partition(" in regex /")[0]).split())[:300]


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _dump(schema: Any) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f"json_schema: expected JSON, got something else: {error}") from None
