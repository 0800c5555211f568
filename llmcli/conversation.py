"""A conversation with a model: messages become one prompt, of which only what is new is read; kept as JSON.

Knows messages and text; knows neither files nor terminals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmcli import description
from llmcli.chat_template import ChatTemplate
from llmcli.errors import InputError
from llmcli.generation.completions import SETTINGS, Completion, Session
from llmcli.generation.loop import Request
from llmcli.generation.prefix import Remembering
from llmcli.generation.sampling import SEED_LIMIT

SCHEMA = "llmcli/chat/1"
ROLES = ("system", "user", "assistant")
CHANGEABLE = tuple(name for name in SETTINGS if name not in ("num_samples", "logprobs"))


@dataclass
class Conversation:
    """Messages under a session's model and settings (names of CHANGEABLE).

    Without a chat template in the checkpoint the messages are one running text, each of the user's on its own line.
    """

    session: Session
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    template: ChatTemplate | None = None
    memory: Remembering | None = None  # of what the model has read
    unread: int = 0  # of the first messages, which the last prompt had no room for
    matches: bool | None = None  # whether the last answer matches the constraint, if there is one

    def __post_init__(self) -> None:
        loaded = self.session.loaded
        settings = description.tokenizer_settings(loaded.path)
        if settings.get("chat_template") is not None:
            eos_id = loaded.tokenizer.eos_id
            self.template = ChatTemplate.of(settings, "" if eos_id is None else loaded.tokenizer.end_of_text())
        if getattr(loaded.model, "CACHES_KEYS", False):
            self.memory = self.session.reader = Remembering(loaded.model)
        self.session.request("x", self.settings)  # settings that cannot be used are refused here

    def answer(self, text: str, interrupted: Callable[[], bool]) -> Iterator[str]:
        """The pieces of the answer to a message; both are kept, the answer as far as it came.

        The seed of an answer is the session's plus the number of messages before. Raises InputError, and keeps nothing,
        for a message that has no room in the context or that the template refuses.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            request = self._request()
        except InputError:
            del self.messages[-1]
            raise
        completion = Completion()
        try:
            for event in self.session.events([request], interrupted):
                completion.add(event)
                yield event.text
        finally:
            if self.memory is not None:
                self.memory.took(completion.tokens[:-1])  # the last one was chosen, and not read
            self.messages.append({"role": "assistant", "content": completion.text})
            self.matches = completion.matches

    def system(self, text: str) -> None:
        """Begin with this system message, in place of another; none if the text is empty."""
        rest = self.messages[1:] if self._has_system else self.messages
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.messages = self.messages[:1] if self._has_system else []

    def set(self, name: str, value: str) -> None:
        """Change a setting: the value as JSON, else as text. Raises InputError, and changes nothing."""
        if name not in CHANGEABLE:
            raise InputError(f"expected one of {', '.join(CHANGEABLE)}, got '{name}'")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        if name == "regex" and parsed is not None:
            parsed = value  # many are JSON, too, such as [0]
        changed = {**self.settings, name: parsed}
        self.session.request("x", changed)
        self.settings = changed

    def document(self) -> dict[str, Any]:
        """What `load` takes back."""
        session = self.session
        return {
            "schema": SCHEMA,
            "model": session.name,
            "model_sha256": session.engine["model_sha256"],
            "settings": self.settings,
            "messages": self.messages,
        }

    def load(self, document: Any, given: Mapping[str, Any] | None = None) -> bool:
        """Go on with a saved conversation, under its settings but for those given; whether its model was this one.

        Raises InputError, and changes nothing, for what is no such document.
        """
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise InputError(f"expected a conversation with the schema {SCHEMA}, as /save writes it")
        messages, settings = document.get("messages"), document.get("settings")
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise InputError('conversation: expected "messages" with a "role" and a "content" of text each')
        if not isinstance(settings, dict) or not settings.keys() <= {*CHANGEABLE}:
            raise InputError(f'conversation: expected "settings" out of {", ".join(CHANGEABLE)}')
        changed = {**self.settings, **settings, **(given or {})}
        self.session.request("x", changed)
        self.settings, self.messages = changed, [{name: m[name] for name in ("role", "content")} for m in messages]
        return bool(document.get("model_sha256") == self.session.engine["model_sha256"])

    @property
    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

    def _request(self) -> Request:
        """The prompt of the messages, without the oldest where the answer would not get its max_tokens.

        Half of the context is enough for it.
        """
        context, first = self.session.policy.context, int(self._has_system)
        room = context - min(int(self.settings["max_tokens"]), context // 2)
        seed = (int(self.settings["seed"]) + len(self.messages) - 1) % SEED_LIMIT
        for begin in range(first, len(self.messages), 2):  # a question goes with its answer
            messages = self.messages[:first] + self.messages[begin:]
            text = self._text(messages)
            last = begin + 2 >= len(self.messages)
            if last or len(self.session.loaded.tokenizer.encode_prompt(text)) <= room:
                self.unread = begin - first
                return self.session.request(text, {**self.settings, "seed": seed})
        raise AssertionError("a conversation ends with the user's message")

    def _text(self, messages: list[dict[str, str]]) -> str:
        if self.template is not None:
            return self.template.render(messages, add_generation_prompt=True)
        text = ""
        for message in messages:
            text += "\n" if text and message["role"] != "assistant" else ""
            text += message["content"]
        return text


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)
