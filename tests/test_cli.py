"""The real binary in a real shell: exit codes, one-line errors, pipes and signals."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmcli.cli import COMMANDS, cli
from tests.commands.sample import FAILURES
from tests.conftest import Result

Shell = Callable[..., Result]
ROOT = Path(__file__).parents[1]
SAMPLE = "from llmcli.cli import COMMANDS, main; COMMANDS['sample'] = ('tests.commands.sample', ''); main()"
CODES = {
    "input": 2, "gate": 3, "noisy": 4, "model": 5, "resource": 6, "bug": 1, "memory": 6, "torch-memory": 6,
    "gpu-memory": 6,
    "library": 6, "mapping": 6, "interrupt": 130, "full": 6, "missing": 5, "denied": 2, "pipe": 141,
}  # fmt: skip


@pytest.fixture
def sample(shell_environment: dict[str, str], tmp_path: Path) -> str:
    """A shell word that runs the sample command with this process's Python."""
    program = tmp_path / "sample"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{SAMPLE}" sample "$@"\n')
    program.chmod(0o755)
    shell_environment["PYTHONPATH"] = f"{shell_environment['PYTHONPATH']}{os.pathsep}{ROOT}"
    return "./sample"


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_has_its_code_and_one_line(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    monkeypatch.setitem(COMMANDS, "sample", ("tests.commands.sample", ""))
    result = CliRunner().invoke(cli, ["sample", "--fail", failure])
    assert result.exit_code == CODES[failure]
    assert result.stdout == ""
    assert result.stderr.count("\n") == (0 if failure == "pipe" else 1)
    assert "Traceback" not in result.stderr
    loud = CliRunner().invoke(cli, ["sample", "-v", "--fail", failure])
    assert loud.exit_code == CODES[failure]
    assert "Traceback" in loud.stderr or failure == "pipe"


def test_a_bug_says_what_to_do(shell: Shell, sample: str) -> None:
    result = shell(f"{sample} --fail bug")
    assert result.code == 1
    assert result.err == (
        "error: internal error: TypeError: surprise; this is a bug, run again with -v for the traceback\n"
    )
    assert shell(f"{sample} --fail full").err.startswith("error: no space left on the device while writing out.txt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("llmcli complet", "did you mean 'completion'?"),
        ("llmcli nonsense", "expected one of"),
        ("llmcli completion --hlp", "--help"),
        ("llmcli completion", "missing argument"),
        ("llmcli completion bash extra", "unexpected extra argument"),
        ("llmcli completion csh", "bash"),
        ("llmcli --nonsense", "no option"),
        ("llmcli tokenize --file", "'llmcli tokenize --help'"),
        ("llmcli tokenize --piecs", "no option '--piecs'; did you mean '--pieces'?"),
    ],
)
def test_usage_errors(shell: Shell, line: str, words: str) -> None:
    result = shell(line)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.startswith("error: ")
    assert words in result.err


def test_no_arguments_shows_the_help_on_stderr(shell: Shell) -> None:
    result = shell("llmcli")
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


def test_version(shell: Shell) -> None:
    assert re.fullmatch(r"llmcli \d+\.\d+\.\d+\S*\n", shell("llmcli --version").out)
    assert shell("llmcli --help", LLMCLI_VERSION="1").out.startswith("Usage")


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "de_DE.ISO-8859-1", "nonsense"])
def test_text_is_utf8_in_every_locale(shell: Shell, sample: str, locale: str) -> None:
    result = shell(f"{sample} 'é😀'", LC_ALL=locale, LANG=locale)
    assert result.code == 0
    assert result.out.endswith("é😀")


def test_closed_pipe_is_quiet(shell: Shell, sample: str) -> None:
    result = shell(f"{sample} --endless | head -1; echo ${{PIPESTATUS[0]}}")
    assert (result.out, result.err) == ("line\n141\n", "")
    result = shell("(sleep 0.3; llmcli --help) | true; echo ${PIPESTATUS[0]}")
    assert (result.out, result.err) == ("141\n", "")


def test_full_device(shell: Shell, sample: str) -> None:
    for line in (f"{sample} x > /dev/full", f"{sample} x -o /dev/full", "llmcli completion bash > /dev/full"):
        result = shell(line)
        assert result.code == 6
        assert result.err.count("\n") <= 2
        assert "no space left on the device" in result.err


def test_closed_streams(shell: Shell, sample: str) -> None:
    result = shell(f"{sample} x >&-")
    assert result.code == 6
    assert "standard output" in result.err
    assert shell(f"{sample} x 2>&-").out == "text None None 0 0.0 x"
    assert shell(f"{sample} --fail model 2>&-").code == 5
    assert shell(f"{sample} <&-").code == 2
    assert shell(f"{sample} x <&-").out == "text None None 0 0.0 x"


def test_output_to_pipes_and_devices(shell: Shell, sample: str) -> None:
    assert shell(f"{sample} x -o /dev/stdout").out == "text None None 0 0.0 x"
    assert shell(f"{sample} x -o >(cat); wait").out == "text None None 0 0.0 x"
    assert shell(f"{sample} x -o /dev/null && test -c /dev/null").code == 0
    closed = shell(f"mkfifo pipe; head -1 pipe & {sample} --endless -o pipe")
    assert (closed.code, closed.out, closed.err) == (141, "line\n", "")


def test_reading_only_folder(shell: Shell, sample: str) -> None:
    if os.geteuid() == 0:
        result = shell(f"{sample} x -o /proc/out")
    else:
        result = shell(f"mkdir locked && chmod 500 locked && {sample} x -o locked/out")
    assert result.code == 2
    assert result.err.count("\n") == 2
    assert "expected a file that can be written" in result.err


def start(sample: str, environment: dict[str, str], folder: Path, *arguments: str, **settings: Any) -> Any:
    return subprocess.Popen(
        [sample, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, **settings
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_silent_pipe_is_announced(shell_environment: dict[str, str], sample: str, tmp_path: Path) -> None:
    process = start(sample, shell_environment, tmp_path, "x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    hint = "waiting for text on standard input; close it (</dev/null) when there is none\n"
    assert process.stderr.readline() == hint
    out, err = process.communicate("piped ", timeout=20)
    assert (out, err) == ("text None None 0 0.0 piped x", "a note\n")


@pytest.mark.parametrize(
    ("arguments", "number", "code", "message"),
    [
        (["--wait"], signal.SIGINT, 130, "interrupted\n"),
        (["--wait", "--convert"], signal.SIGINT, 130, "interrupted\n"),
        (["--wait"], signal.SIGTERM, 143, ""),
        (["--gentle"], signal.SIGTERM, 143, ""),
        (["--gentle"], signal.SIGINT, 130, ""),
    ],
)
def test_signals(
    shell_environment: dict[str, str], sample: str, tmp_path: Path,
    arguments: list[str], number: signal.Signals, code: int, message: str,
) -> None:  # fmt: skip
    process = start(sample, shell_environment, tmp_path, *arguments, "-o", "out", start_new_session=True)
    wait_for(lambda: any(name.name.startswith(".out") for name in tmp_path.iterdir()))
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, message)
    finished = "--gentle" in arguments and number == signal.SIGINT
    assert {path.name for path in tmp_path.iterdir()} == {"sample", "out"} if finished else {"sample"}
    if finished:
        assert (tmp_path / "out").read_text() == "begun\nended\n"


def test_second_interrupt_ends_at_once(shell_environment: dict[str, str], sample: str, tmp_path: Path) -> None:
    process = start(
        sample, shell_environment, tmp_path, "--gentle", "--convert", stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ended\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.parametrize("then", ["--convert", "--steps=600"])
def test_a_lost_interrupt_counts(shell_environment: dict[str, str], sample: str, tmp_path: Path, then: str) -> None:
    process = start(sample, shell_environment, tmp_path, "--lose", then, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.04, 0.06, 0.08, 0.12])
def test_interrupt_while_starting(shell_environment: dict[str, str], sample: str, tmp_path: Path, delay: float) -> None:
    # Marks the moment at which the package is reached: what comes before is Python's own start.
    code = (
        "import sys; sys.argv[1:] = ['completion', 'bash']; from llmcli.__main__ import main; "
        "print('reached', file=sys.stderr, flush=True); main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=shell_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "reached\n"
    time.sleep(delay + 0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode in (0, 130)
    assert err in ("", "interrupted\n")


def test_no_prompt_on_a_terminal_is_a_hint(
    shell_environment: dict[str, str], sample: str, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    process = start(sample, shell_environment, tmp_path, stdin=terminal[1], stdout=subprocess.PIPE)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err == "error: expected a prompt, got none; pass it as an argument, with -f FILE, or through a pipe\n"


def test_control_c_stops_a_shell_loop(
    shell_environment: dict[str, str], sample: str, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    # Bash goes on with its loop when a program that was interrupted exits by itself, even with 130.
    script = f"for i in 1 2 3; do {sample} --wait -o out; echo again; done"
    child, master = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve("/bin/bash", ["bash", "-c", script], shell_environment)
    wait_for(lambda: any(name.name.startswith(".out") for name in tmp_path.iterdir()))
    time.sleep(0.1)
    os.write(master, b"\x03")
    _, status = os.waitpid(child, 0)
    written = os.read(master, 4096)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT
    assert b"again" not in written
    assert written.count(b"interrupted") == 1
