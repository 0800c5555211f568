"""docs/commands.md says what the commands' own help says."""

from __future__ import annotations

import re

import pytest

from llmcli.cli import COMMANDS
from tests.commands.manual import PAGE, page


def test_the_page_is_what_the_help_says() -> None:
    assert PAGE.read_text("utf-8") == page(), "docs/commands.md is stale: run python -m tests.commands.manual"


@pytest.mark.parametrize("variable", ["COLUMNS=40", "LLMCLI_GENERATE_MAX_TOKENS=9", "NO_COLOR=1"])
def test_the_surroundings_leave_it_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(*variable.split("="))
    assert page() == PAGE.read_text("utf-8")


def test_every_command_has_a_section_with_flags_and_an_example() -> None:
    sections = dict(re.findall(r"^## llmcli (.+?)\n(.*?)(?=^## |\Z)", page(), re.S | re.M))
    assert set(COMMANDS) <= set(sections)
    assert {"bench compare", "bench kernels", "verify cache", "tokenizer train"} <= set(sections)
    for name, text in sections.items():
        assert text.startswith("\n"), name
        assert f"\n    llmcli {name}" in text
        assert f"\nllmcli {name}" in text or name in ("tokenizer", "data"), name
        assert "- `" in text or name in ("tokenizer", "data", "verify", "completion"), name
