"""Any line at all is a request or a record with an error, and its document is JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from llmcli import records
from llmcli.commands.terminal import to_json
from llmcli.errors import InputError
from llmcli.generation.completions import SETTINGS, Policy, Session
from llmcli.generation.loop import Batch, Event, Request, TokenLogprob
from llmcli.loading import Loaded
from llmcli.tokenizer import Tokenizer
from tests.tiny import write_tokenizer

CONTEXT = 64
NUMBERS = st.one_of(
    st.integers(-3, 200),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 0.5, 1.0, 1e-300, 1e300, math.nan, math.inf]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
RECORDS = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["The sea", "", "a" * 400, "\ud800", "\u0000", "\U0001f600"]) | VALUES},
    optional={**dict.fromkeys(SETTINGS, VALUES), "id": VALUES, "max_token": VALUES},
)


class Echo(Batch):
    """A batch whose model writes one token, whatever it is asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, Request]] = []

    @property
    def size(self) -> int:
        return len(self.requests)

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        self.requests += requests

    def step(self) -> Iterator[Event]:
        while self.requests:
            number, request = self.requests.pop()
            assert isinstance(request, Request)
            assert 1 <= len(request.ids) < CONTEXT
            top = TokenLogprob(-1.0, [(3, -1.0)][: request.logprobs])
            logprob = None if request.logprobs is None else top
            for sample in range(request.num_samples):
                yield Event(number, sample, 3, "x", logprob, "length")

    def read(self) -> None:
        pass


class EchoSession(Session):
    engine: dict[str, Any] = {}  # noqa: RUF012

    def batch(self) -> Batch:
        return Echo()


@pytest.fixture(scope="module", params=["error", "truncate", "slide"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, 320)
    tokenizer = Tokenizer.open(directory)
    loaded = Loaded(
        SimpleNamespace(KIND="decoder"), tokenizer, {}, "tiny", Path("tiny"), torch.float32, torch.device("cpu")
    )
    return EchoSession(loaded, Policy(CONTEXT, request.param))


@pytest.mark.parametrize("name", ["num_samples", "max_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "1", [1], {}])
def test_counts_that_cannot_be(session: Session, name: str, value: Any) -> None:
    assert "error" in check(session, json.dumps({"prompt": "a", name: value}).encode())


@pytest.mark.parametrize(("name", "refused"), [("num_samples", 1), ("seed", 1), ("max_tokens", 0), ("logprobs", 0)])
def test_counts_beyond_every_machine(session: Session, name: str, refused: int) -> None:
    assert refused == ("error" in check(session, json.dumps({"prompt": "a", name: 2**64}).encode()))


def check(session: Session, line: bytes) -> dict[str, Any]:
    (record,) = records.answer(session, iter([(7, line)]), {"max_tokens": 5})
    document = record.document(session)
    read = json.loads(to_json(document, indent=None))
    assert ("error" in read) != ("choices" in read)
    if "error" in read:
        assert read["error"]["line"] == 7
        assert read["error"]["code"] == 2
        assert read["error"]["message"]
    return read


@given(RECORDS.map(json.dumps))
@example('{"prompt": "a", "top_k": 1e308}')
@example('{"prompt": "a", "max_tokens": 1e999}')
@example('{"prompt": "a", "stop": ["a", ""]}')
def test_any_record(session: Session, line: str) -> None:
    if len(session.loaded.tokenizer.encode("a" * 400)) < CONTEXT:
        pytest.fail("the long prompt must not fit")
    check(session, line.encode())


@given(st.binary(max_size=40) | st.text('{}[]":,0123456789eE.-truefalsnpm \\u', max_size=40).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"prompt": ' + b"[" * 100_000)
@example(b"1" * 5_000)
@example(b'\xef\xbb\xbf{"prompt": "a"}')
@example(b'{"prompt": "a", "prompt": "b"}')
def test_any_line(session: Session, line: bytes) -> None:
    check(session, line)


@given(st.sampled_from(SETTINGS), VALUES)
def test_a_setting_on_the_command_line_is_used_or_refused(session: Session, name: str, value: Any) -> None:
    try:
        request = session.request("The sea", {name: value})
    except InputError:
        return
    assert 1 <= len(request.ids) < CONTEXT
