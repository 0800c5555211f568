"""Chat templates: the simple one, a model's own, which part the assistant wrote, templates that misbehave."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import pytest

from llmcli.chat_template import SIMPLE, ChatTemplate
from llmcli.errors import InputError, ModelError

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long."},
]


def test_the_simple_template() -> None:
    template = ChatTemplate(SIMPLE, "<end>")
    assert template.render(TALK[:3]) == "### system\nBe short.\n### user\nHi\n### assistant\nHello.<end>\n"
    assert template.render(TALK[1:2], add_generation_prompt=True) == "### user\nHi\n### assistant\n"


def test_spans_are_the_text_and_what_the_assistant_wrote() -> None:
    template = ChatTemplate(SIMPLE, "<end>")
    spans = template.spans([*TALK, {"role": "user", "content": "Still there?"}])
    assert "".join(text for text, _ in spans) == template.render(TALK)
    assert [text for text, learned in spans if learned] == ["Hello.<end>\n", "So long.<end>\n"]


def test_a_model_brings_its_own(tmp_path: Path) -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, "bos_token": "<s>"}))
    assert ChatTemplate.open(tmp_path, "<end>").render(TALK[1:3]) == "<s>[user] Hi\n[assistant] Hello.\n"
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": source}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.open(tmp_path, "<end>").source == source
    (tmp_path / "chat_template.jinja").write_text("alone")
    assert ChatTemplate.open(tmp_path, "<end>").render(TALK) == "alone"
    assert ChatTemplate.open(tmp_path / "nothing here", "<end>").source == SIMPLE


def test_what_other_tools_offer_to_templates() -> None:
    source = (
        "{% if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m | tojson }} {%- generation -%} <{{ m.content }}> {%- endgeneration %}{% endfor %}"
    )
    found = ChatTemplate(source, "<end>").render([TALK[0], {"role": "user", "content": "a < é"}])
    assert found == '{"role": "user", "content": "a < é"}<a < é>'


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' ~ }}"])
def test_refuses_what_is_no_template(source: str) -> None:
    with pytest.raises(ModelError, match="not readable as Jinja"):
        ChatTemplate(source, "<end>")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_reach_out(source: str) -> None:
    with pytest.raises(InputError, match="refuses these messages"):
        ChatTemplate(source, "<end>").render(TALK)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (LOOP + "{% endfor %}{% endfor %}", "more than 2000000 steps"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion|steps"),
        ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "MemoryError"),
        ("{{ messages[0].content.ljust(99999999999) }}", "MemoryError"),
        ("{{ 9 ** 999999999 }}", "numbers too large"),
        ("{{ 'x' | center(99999999999) }}", "MemoryError"),
        (
            "{% set n = namespace(x=10) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "too large for *",
        ),
        ("{{ messages[0].content * 5000000 }}", "made 45000000 characters"),
        ("{{ '%99999999999d' % 1 }}", "MemoryError|too big"),
    ],
)
def test_a_template_has_little_time_and_memory(source: str, said: str) -> None:
    begin, around = time.process_time(), (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace())
    with pytest.raises(InputError, match=said.replace("*", r"\*")):
        ChatTemplate(source, "<end>").render(TALK)
    assert time.process_time() - begin < 20
    assert (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()) == around
    assert ChatTemplate(SIMPLE, "<end>").render(TALK[1:2]) == "### user\nHi\n"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 3000 + ")" * 3000 + " }}",
        "{{ messages | random }}",
    ],
)
def test_a_template_that_cannot_be_compiled_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="not readable as Jinja"):
        ChatTemplate(source, "<end>")


def test_refuses_a_template_that_rewrites_the_past() -> None:
    template = ChatTemplate("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "<end>")
    with pytest.raises(InputError, match="changes earlier text"):
        template.spans(TALK)
