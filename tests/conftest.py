"""What every test shares; among it the real command line, run by a real shell."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

import llmcli

# A deadline measures the machine's load, not the code.
settings.register_profile("llmcli", deadline=None)
settings.load_profile("llmcli")


@dataclass(frozen=True)
class Result:
    """What a shell command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def shell_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `llmcli` is this package, whether it is installed or not, and nothing is coloured."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "llmcli"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmcli "$@"\n')
    program.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LLMCLI_", "COLUMNS"))}
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(Path(llmcli.__file__).parents[1])
    environment["HF_HUB_OFFLINE"] = "1"
    return environment


@pytest.fixture
def shell(shell_environment: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """`shell("echo x | llmcli …")` runs bash with pipefail in an empty folder; stdin is empty unless given."""

    def run(script: str, *, stdin: bytes = b"", timeout: float = 120, **environment: str) -> Result:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", script],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            cwd=tmp_path,
            env=shell_environment | environment,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`invoke("score a.txt")` runs a command line in this process, in an empty folder: quicker than a shell."""
    from click.testing import CliRunner

    from llmcli.cli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(arguments: str, *, stdin: bytes = b"", **environment: str) -> Result:
        done = CliRunner().invoke(cli, shlex.split(arguments), input=stdin, env=environment)
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random GPT-2 (vocabulary 320, 64 positions) with its tokenizer. Read only: copy to change."""
    directory = tmp_path_factory.mktemp("tiny_gpt2")
    from tests.tiny import write_checkpoint  # here, because it imports torch, which many tests do without

    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Path) -> Path:
    """The same with a chat template, and without an end of text, so that an answer lasts. Read only."""
    directory = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(tiny_gpt2, directory)
    template = (
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        "[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return directory


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal."""
    master, slave = pty.openpty()
    yield master, slave
    for end in (master, slave):
        os.close(end)
