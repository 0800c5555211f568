"""Records of JSONL in, answered records out: one for each line, in order, as soon as it can be.

Knows JSON fields; knows neither files nor terminals.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmcli.errors import InputError
from llmcli.generation.completions import SCHEMA, SETTINGS, Completion, Session, Stopwatch, identity
from llmcli.generation.constraint import KINDS
from llmcli.generation.loop import Event, Request


def parse_record(
    line: bytes, defaults: Mapping[str, Any], errors: str = "strict"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A line of JSONL → the record, and its settings over the defaults. Raises InputError.

    A record with an id and no seed gets a seed of its own. Fields that mean nothing here pass, so that a data set's own
    columns can stay; near misses of a setting do not.
    """
    try:
        record = json.loads(line.decode("utf-8", errors))
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON object in UTF-8, got something else: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"expected a JSON object, got {type(record).__name__}")
    if not isinstance(record.get("prompt"), str):
        raise InputError(f'expected a "prompt" of text, got {record.get("prompt")!r}')
    for key in record.keys() - {"id", "prompt", *SETTINGS}:
        if near := difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.8):
            raise InputError(f'unknown field "{key}"; did you mean "{near[0]}"?')
    given = {key: record[key] for key in SETTINGS if record.get(key) is not None}
    if record.get("id") is not None and "seed" in defaults:
        given.setdefault("seed", derived_seed(defaults["seed"], record["id"]))
    if any(kind in given for kind in KINDS):  # the record's own constraint takes the place of the flags'
        defaults = {name: value for name, value in defaults.items() if name not in KINDS}
    return record, {**defaults, **given}


def derived_seed(seed: int, id: object) -> int:
    """The seed of a record from the run's and its id, any JSON value: records of one prompt get texts of their own."""
    text = json.dumps([seed, id], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # below 2^63, as --seed is


@dataclass
class Record:
    """A numbered line, and what has become of it: a request with its samples, or a problem."""

    number: int
    id: Any = None
    prompt: str = ""
    request: Request | None = None
    problem: InputError | None = None
    samples: list[Completion] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def ended(self) -> bool:
        """Whether its document can be written."""
        return all(sample.finish_reason is not None for sample in self.samples)

    @property
    def completed(self) -> bool:
        """Whether nothing cut its samples short."""
        return self.ended and all(sample.finish_reason != "interrupt" for sample in self.samples)

    def add(self, event: Event) -> None:
        """Take an event of its request."""
        self.watch.tick()
        self.samples[event.sample].add(event)

    def document(self, session: Session) -> dict[str, Any]:
        """What the line is answered with."""
        if self.request is None:
            assert self.problem is not None
            return error_document(self.problem, self.number, self.id)
        made = session.document(self.request, self.samples, self.watch)
        return made if self.id is None else {**made, "id": self.id, "request_id": made["id"]}


def read(session: Session, number: int, line: bytes, defaults: Mapping[str, Any], errors: str = "strict") -> Record:
    """A numbered line as a record, with its problem where it cannot be used."""
    record = Record(number, watch=Stopwatch(load=session.load_seconds))
    try:
        fields, settings = parse_record(line, defaults, errors)
        record.id, record.prompt = fields.get("id"), fields["prompt"]
        record.request = session.request(fields["prompt"], settings)
    except InputError as error:
        record.problem = error
    else:
        record.samples = [Completion() for _ in range(record.request.num_samples)]
    return record


def answer(
    session: Session,
    lines: Iterator[tuple[int, bytes]],
    defaults: Mapping[str, Any],
    *,
    batch_size: int = 1,
    errors: str = "strict",
    noted: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Numbered lines of JSONL, batch_size of them at a time → each with its samples or its problem, in order.

    A line is read when there is room for it; where one has ended, the next takes its place at once. noted: samples have
    log-probabilities even where the request has none.
    """

    def run(request: Request) -> Request:
        return replace(request, logprobs=request.logprobs or 0) if noted else request

    records = (read(session, number, line, defaults, errors) for number, line in lines)
    if session.policy.beams > 1:
        for record in records:
            for event in session.events([run(record.request)], interrupted) if record.request else ():
                record.add(event)
            yield record
            if interrupted():
                return
        return
    batch = session.batch()
    running: dict[int, Record] = {}  # by number; one that has ended waits here for those before it

    def ready() -> Iterator[Record]:
        while running and (first := next(iter(running.values()))).ended:
            yield running.pop(first.number)

    while True:
        fresh: list[tuple[int, Request]] = []
        while not interrupted() and batch.size + len(fresh) < batch_size and (new := next(records, None)):
            running[new.number] = new
            if new.request is not None:
                fresh.append((new.number, run(new.request)))
            yield from ready()
        batch.add(fresh)
        if not batch.size:
            return
        for event in batch.step():
            running[event.request].add(event)
        if interrupted():
            for event in batch.interrupt():
                running[event.request].add(event)
        yield from ready()
        batch.read()


def error_document(error: InputError, line: int, id: object = None) -> dict[str, Any]:
    """What stands in the place of a document for a record that cannot be used."""
    problem = {"message": str(error), "type": "invalid_request_error", "code": error.exit_code, "line": line}
    return {"schema": SCHEMA, "id": id, "error": problem}


def lasting(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what another run of the same records may have otherwise: times, and the number of threads."""
    kept = {key: value for key, value in document.items() if key not in ("created", "timings")}
    if "llmcli" in kept:
        kept["llmcli"] = {key: value for key, value in kept["llmcli"].items() if key != "threads"}
    return kept


def answers(session: Session, document: Any, record: Record) -> bool:
    """Whether a document of an earlier run is what this session would write for a record."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return False
    if record.request is None:
        return document == record.document(session)
    facts, engine = document.get("llmcli"), {key: session.engine[key] for key in session.engine if key != "threads"}
    if not isinstance(facts, dict) or any(facts.get(key) != value for key, value in engine.items()):
        return False
    own = identity(session.name, record.request)
    return document.get("request_id", document.get("id")) == own and document.get("id") == (
        own if record.id is None else record.id
    )
