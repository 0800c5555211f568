"""Progress: nothing for quick work or with -q, plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import COMMANDS, cli
from llmcli.commands import progress
from llmcli.commands.progress import Progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "sample", ("tests.commands.sample", "A command for tests."))


def steps(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["sample", "--steps", "3", *arguments])
    assert result.exit_code == 0
    assert result.stdout == ""
    return result.stderr


def test_quick_work_is_silent() -> None:
    assert steps() == ""


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert steps() == ""  # not yet ten seconds
    monkeypatch.setattr(progress, "INTERVAL", 0.15)
    assert steps() == "stepping: 67 %, 2/3 steps loss 1.0\n"
    assert steps("-q") == ""


def test_bytes_and_unknown_totals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with Progress("loading", unit="B") as bar:
        bar(1_500_000, 3_000_000)
    with Progress("reading", unit="records") as bar:
        bar(7)
    assert capsys.readouterr().err == "loading: 50 %, 1.5/3.0 MB\nreading: 7 records\n"


@pytest.mark.parametrize(("environment", "bar"), [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False)])
def test_a_terminal_gets_a_bar(environment: dict[str, str], bar: bool) -> None:
    code = (
        "from llmcli.commands import progress; progress.DELAY = 0; import time\n"
        "with progress.Progress('stepping', total=3, unit='steps') as p:\n"
        "    for i in (1, 2, 3): p(i); time.sleep(0.1)"
    )
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=slave, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, **environment}
    )
    os.close(slave)
    assert (done.returncode, done.stdout) == (0, b"")
    written = b""
    try:
        while part := os.read(master, 4096):
            written += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    assert (b"2/3 steps" in written or b"3/3 steps" in written) is bar
