"""Examples: records of JSONL files become pieces of text, learned or only read, and these become rows of ids.

Knows text, tokenizers and ids; knows neither models nor terminals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmcli.data.batches import IGNORED, Row
from llmcli.data.corpus import Document, document, read_files
from llmcli.errors import InputError, ModelError
from llmcli.tokenizer import END_OF_TEXT, Tokenizer

TOGETHER = 256  # examples encoded at once, in parallel


@dataclass(frozen=True)
class Example:
    """Pieces of text, (piece, whether it is learned); `ends` adds the end-of-text token, learned."""

    name: str
    spans: Sequence[tuple[str, bool]]
    ends: bool

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of what is learned."""
        return sum(len(text.encode()) for text, learned in self.spans if learned)


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    name: str
    text: str
    label: str


Spans = Callable[[Sequence[dict[str, str]]], list[tuple[str, bool]]]  # `ChatTemplate.spans`


def read(path: str) -> Iterator[tuple[str, Any]]:
    """(name, text or JSON object) of a file, or of every *.txt and *.jsonl below a directory in name order."""
    for name, text in read_files(path, (".txt", ".jsonl")):
        yield from split(text, name, jsonl=name.endswith(".jsonl"))


def split(text: str, name: str, *, jsonl: bool) -> Iterator[tuple[str, Any]]:
    """A text as it is, or the objects in the lines of a JSONL text, with names such as FILE:LINE.

    Raises InputError for a line that is not a JSON object; empty lines are passed over.
    """
    if not jsonl:
        yield name, text
        return
    found = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}:{number}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"{name}:{number}: expected a JSON object, got {type(record).__name__}")
        found = True
        yield f"{name}:{number}", record
    if not found:
        raise InputError(f"{name} has no records: expected a JSON object in each line")


def lesson(record: Any, name: str, spans: Callable[[], Spans]) -> Document | Example:
    """What a language model learns from a text or a record: `text`, `prompt` and `completion`, or `messages`.

    `spans` opens the chat template, for messages only. Raises InputError, with the name, for any other record.
    """
    if isinstance(record, str):
        return document(record, name)
    if "messages" in record:
        return _conversation(record["messages"], name, spans())
    if "prompt" in record or "completion" in record:
        prompt, completion = (string(record, key, name) for key in ("prompt", "completion"))
        return Example(name, ((prompt, False), (completion, True)), ends=True)
    if "text" in record:
        return document(string(record, "text", name), name)
    raise InputError(f"{name}: expected text, prompt and completion, or messages; got {_keys(record)}")


def labelled(record: Any, name: str) -> Labelled:
    """A record with `text` and `label` (a string or a whole number). Raises InputError, with the name."""
    if isinstance(record, str):
        raise InputError(f"{name}: expected JSONL with text and label in each line, got plain text")
    label = record.get("label")
    if "label" not in record or not isinstance(label, str | int) or isinstance(label, bool) or label == "":
        raise InputError(f"{name}: expected a label, a string or a whole number; got {_keys(record)}")
    return Labelled(name, string(record, "text", name), str(label))


def _conversation(messages: Any, name: str, spans: Spans) -> Example:
    well_formed = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )
    if not well_formed:
        raise InputError(f"{name}: expected messages, a list of objects with the strings role and content")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise InputError(f"{name}: expected at least one message whose role is assistant, which is what is learned")
    try:
        return Example(name, spans(messages), ends=False)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def string(record: dict[str, Any], key: str, name: str) -> str:
    """The text under a key. Raises InputError, with the name, where there is none."""
    value = record.get(key)
    if not isinstance(value, str):
        got = type(value).__name__ if key in record else _keys(record)
        raise InputError(f"{name}: expected a string under {key!r}, got {got}")
    if not value.strip():
        raise InputError(f"{name}: {key!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: {key!r} holds half of a surrogate pair, which is no text") from None
    return value


def _keys(record: dict[str, Any]) -> str:
    return f"the keys {', '.join(sorted(map(repr, record)))}" if record else "an empty object"


def encode(
    tokenizer: Tokenizer, lessons: Sequence[Document | Example], ctx_size: int, start_id: int | None = None
) -> Iterator[tuple[int, list[Row], int]]:
    """Encode in parallel; yields (lessons encoded, their rows, how many of them lost their beginning).

    A row reads at most ctx_size tokens; a longer example keeps its end, a longer document becomes several rows. For a
    model that answers prompts, whose decoder begins with start_id, the rows are those of `answered`.
    """
    if tokenizer.eos_id is None:
        raise ModelError(f"the tokenizer has no {END_OF_TEXT} entry, which ends an example")
    end = np.array([tokenizer.eos_id], np.int32)
    for first in range(0, len(lessons), TOGETHER):
        some = lessons[first : first + TOGETHER]
        if start_id is not None:
            pairs = [answered(tokenizer, one, ctx_size, start_id) for one in some]
            yield len(some), [row for row, _ in pairs], sum(cut for _, cut in pairs)
            continue
        pieces = [text for one in some for text, _ in _spans(one)]
        ids = iter(encode_all(tokenizer, pieces))
        rows, shortened = [], 0
        for one in some:
            if isinstance(one, Document):
                stream = np.concatenate([end, next(ids)])
                cuts = range(0, max(1, len(stream) - 1), ctx_size)
                rows += [_row(stream[cut : cut + ctx_size + 1], None) for cut in cuts]
                continue
            parts = [(next(ids), learned) for _, learned in one.spans]
            parts += [(end, True)] if one.ends else []
            row = np.concatenate([part for part, _ in parts])
            learned = np.concatenate([np.full(len(part), learned) for part, learned in parts])
            shortened += len(row) > ctx_size + 1
            rows.append(_row(row[-ctx_size - 1 :], learned[-ctx_size - 1 :]))
        yield len(some), [row for row in rows if (row.targets != IGNORED).any()], shortened


def answered(tokenizer: Tokenizer, lesson: Document | Example, ctx_size: int, start_id: int) -> tuple[Row, bool]:
    """A prompt and its completion for an encoder-decoder, and whether one of them lost its end.

    The inputs are the prompt's ids, then what the decoder reads, each of those ids as ~id; the prompt may take what the
    completion, at most half of ctx_size, leaves. Raises InputError, with the name, for anything but a pair.
    """
    if isinstance(lesson, Document) or [learned for _, learned in lesson.spans] != [False, True]:
        raise InputError(f"{lesson.name}: expected prompt and completion, which a model with an encoder learns")
    (prompt, _), (completion, _) = lesson.spans
    written = tokenizer.encode(completion)
    targets = np.array([*written, tokenizer.eos_id], np.int32)[: max(1, ctx_size // 2)]
    read = np.array(tokenizer.encode_whole(prompt, max(1, ctx_size - len(targets))), np.int32)
    inputs = np.concatenate([read, ~np.array([start_id], np.int32), ~targets[:-1]])
    learned = np.concatenate([np.full(len(read), IGNORED, np.int32), targets])
    cut = len(targets) <= len(written) or len(read) < len(tokenizer.encode_whole(prompt))
    return Row(torch.from_numpy(inputs), torch.from_numpy(learned)), cut


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[npt.NDArray[np.int32]]:
    """The ids of each text, in parallel."""
    encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _spans(lesson: Document | Example) -> Sequence[tuple[str, bool]]:
    return ((lesson.text, True),) if isinstance(lesson, Document) else lesson.spans


def _row(ids: npt.NDArray[np.int32], learned: npt.NDArray[np.bool_] | None) -> Row:
    """A token is learned from those before it, so the first one of a row never is."""
    targets = ids[1:] if learned is None else np.where(learned[1:], ids[1:], np.int32(IGNORED))
    return Row(torch.from_numpy(ids[:-1]), torch.from_numpy(targets))
