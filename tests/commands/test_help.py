"""Every command's help: it has an example, it is quick, and it imports neither torch nor rich."""

from __future__ import annotations

import resource
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from llmcli.cli import ALIASES, COMMANDS, cli

HEAVY = ["torch", "numpy", "rich", "tokenizers", "safetensors", "huggingface_hub", "asyncio"]
BUDGET = 0.150  # seconds from process start to the last byte of the help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    _, _, examples = result.output.partition("Examples:")
    assert f"llmcli {name}" in examples


@pytest.mark.parametrize("name", COMMANDS)
def test_table_and_help_agree(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{name} {parameter.opts} has no help"
            # LLMCLI_<COMMAND>_<FLAG> is made from the parameter's name.
            assert f"--{parameter.name}".replace("_", "-") in parameter.opts


def test_help_shows_no_machinery() -> None:
    text = CliRunner().invoke(cli, ["generate", "--help"]).output
    assert "RANGE" not in text
    assert "<=" not in text
    assert "[default: 0]" in text


def test_aliases_name_commands() -> None:
    assert {target for alias, target in ALIASES.items() if target in COMMANDS or alias in COMMANDS} <= set(COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["nonsense"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_imports_no_engine(arguments: list[str]) -> None:
    code = f"""
import sys
from llmcli.cli import cli
try:
    cli.main({arguments!r})
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_quick(arguments: list[str]) -> None:
    # Processor time, not the clock: help waits for nothing, and a busy machine must not fail the test.
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "llmcli", *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < BUDGET:
            return
    pytest.fail(f"the quickest of {len(seconds)} runs took {min(seconds):.3f} s, the budget is {BUDGET} s")
