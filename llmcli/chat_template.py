"""Messages become the text that a model was taught: by the chat template of its tokenizer, else by a simple one.

A template is Jinja, rendered in a sandbox without access to files, modules or attributes that start with '_', and with
bounds on its time, its memory and its text: it comes with a checkpoint, and may be anybody's.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from llmcli.errors import InputError, ModelError, ResourceError

Message = Mapping[str, str]

STEPS = 2_000_000  # lines of a template that are run, and calls: a second; a long conversation takes thousands
MEMORY = 1 << 30  # bytes that a rendering may add
LONGEST = 16_000_000  # characters of a text: more than any context holds
_ONE_AT_A_TIME = threading.Lock()  # the bound on memory is the process's

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

        class Environment(ImmutableSandboxedEnvironment):
            intercepted_binops = frozenset({"*", "**"})

            def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
                """Refuse numbers that take for ever to multiply."""
                if isinstance(left, int) and isinstance(right, int):
                    sizes = left.bit_length(), abs(right) if operator == "**" else right.bit_length()
                    if max(sizes) > 4096 or (operator == "**" and sizes[0] * sizes[1] > 4096):
                        raise OverflowError(f"numbers too large for {operator}")
                return super().call_binop(context, operator, left, right)

        environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _refuse
        # The same messages are the same text.
        environment.globals.pop("lipsum")
        environment.filters.pop("random")
        environment.filters["tojson"] = _to_json  # jinja's own is for HTML
        # transformers' mark of what the assistant wrote, which `spans` finds without it
        source = re.sub(r"{%(-?)\s*(?:end)?generation\s*(-?)%}", r"{%\1 if true %}{% endif \2%}", source)
        try:
            with _bounded():  # constants are computed here
                self._template = environment.from_string(source)
        except (TemplateError, *FAULTS) as error:
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
            with _bounded():
                text = self._template.render(
                    messages=list(messages),
                    add_generation_prompt=add_generation_prompt,
                    tools=None,
                    documents=None,
                    **self._tokens,
                )
        except (self._error, *FAULTS) as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            raise InputError(f"the chat template refuses these messages: {reason}") from None
        if len(text) > LONGEST:
            raise InputError(f"the chat template made {len(text)} characters of these messages; expected {LONGEST}")
        return text

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


class _TooLongError(Exception):
    """A template ran more than STEPS."""


# What a template can raise beside Jinja's own errors.
FAULTS = (
    TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError, SyntaxError,
    _TooLongError,
)  # fmt: skip


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raise _TooLongError or MemoryError where the block takes too much of either. Memory is bounded on Linux only."""
    left, before = STEPS, sys.gettrace()

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooLongError(f"it takes more than {STEPS} steps")
        return step if frame.f_code.co_filename == "<template>" else None  # of the library, calls are enough

    with _ONE_AT_A_TIME, _bounded_memory():
        sys.settrace(step)
        try:
            yield
        finally:
            sys.settrace(before)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = used + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound if soft == resource.RLIM_INFINITY else min(bound, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise ValueError(message)
