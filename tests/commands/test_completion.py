"""The completion scripts: bash really completes commands, flags and values with them; the others parse."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from llmcli.cli import COMMANDS
from tests.conftest import Result

COMPLETE = """
eval "$(llmcli completion bash)"
complete -p llmcli > /dev/null
COMP_WORDS=({words}); COMP_CWORD={last}
_llmcli_completion llmcli
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def complete(shell: Callable[..., Result], *words: str) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in ("llmcli", *words))
    result = shell(COMPLETE.format(words=quoted, last=len(words)))
    assert (result.code, result.err) == (0, "")
    return result.out.split()


def test_bash_completes_commands(shell: Callable[..., Result]) -> None:
    assert set(complete(shell, "")) == set(COMMANDS)
    assert complete(shell, "compl") == ["completion"]


def test_bash_completes_flags_and_values(shell: Callable[..., Result]) -> None:
    assert complete(shell, "tokenize", "--pie") == ["--pieces"]
    assert complete(shell, "completion", "z") == ["zsh"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_scripts_parse(shell: Callable[..., Result], name: str) -> None:
    result = shell(f"llmcli completion {name} > script")
    assert (result.code, result.err) == (0, "")
    if shutil.which(name):
        assert shell(f"{name} -n script").code == 0
    assert "_LLMCLI_COMPLETE" in shell("cat script").out
