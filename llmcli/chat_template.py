"""Messages become the text that a model was taught: by the chat template of its tokenizer, else by a simple one.

A template is Jinja, rendered in a sandbox without access to files, modules or attributes that start with '_'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcli.errors import InputError, ModelError, ResourceError

Message = Mapping[str, str]

# Each message under a line with its role; an answer ends with the end-of-text token.
SIMPLE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)


class ChatTemplate:
    """A compiled template with the end-of-text token that it writes."""

    def __init__(self, source: str, eos_token: str, bos_token: str = "") -> None:
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ResourceError("messages need jinja2, which torch brings along; install jinja2") from None
        self.source = source
        self._error = TemplateError
        self._tokens = {"eos_token": eos_token, "bos_token": bos_token or eos_token}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json  # jinja's own is for HTML
        # transformers' mark of what the assistant wrote, which `spans` finds without it
        source = re.sub(r"{%(-?)\s*(?:end)?generation\s*(-?)%}", r"{%\1 if true %}{% endif \2%}", source)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"chat_template: not readable as Jinja ({error})") from None

    @classmethod
    def open(cls, directory: Path, eos_token: str) -> ChatTemplate:
        """The template beside a model (tokenizer_config.json, or chat_template.jinja), else SIMPLE."""
        settings, alone = directory / "tokenizer_config.json", directory / "chat_template.jinja"
        try:
            config = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
            if alone.exists():
                config["chat_template"] = alone.read_text("utf-8")
            return cls.of(config, eos_token)
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{directory}: no readable chat template ({error!r})") from None

    @classmethod
    def of(cls, config: Mapping[str, Any], eos_token: str) -> ChatTemplate:
        """The template in the keys of a tokenizer_config.json, else SIMPLE."""
        source, bos = config.get("chat_template"), config.get("bos_token")
        if isinstance(source, list):  # several by name
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        bos = bos.get("content") if isinstance(bos, dict) else bos
        return cls(source if isinstance(source, str) else SIMPLE, eos_token, bos if isinstance(bos, str) else "")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The messages as one text, up to where the assistant answers if `add_generation_prompt`."""
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except (self._error, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise InputError(f"the chat template refuses these messages: {error}") from None

    def spans(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The text in pieces, (piece, whether the assistant wrote it), up to the last answer.

        Raises InputError for a template that rewrites what came before when a message is added.
        """
        spans, done = [], ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            after = self.render(messages[: index + 1])
            if not (before.startswith(done) and after.startswith(before)):
                raise InputError("the chat template changes earlier text when a message is added; cannot learn from it")
            spans += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return spans


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise ValueError(message)
