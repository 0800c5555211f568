"""chat in a real terminal: answers, lines that begin with '/', Ctrl-C, Ctrl-D, sessions that are saved and resumed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmcli.commands.chat import line_editor, load
from llmcli.errors import InputError, ResourceError
from tests.conftest import Result
from tests.test_conversation import talk

Shell = Callable[..., Result]
READY = "(ready)"  # stands for what the line editor sends when it waits for keys: bracketed paste, please
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program at the other end of a pseudo-terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self.child, self._master = pty.fork()
        if self.child == 0:
            os.chdir(folder)
            surroundings = environment | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.execvpe("llmcli", ["llmcli", "chat", *arguments], surroundings)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.seen = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def until(self, *expected: str) -> str:
        """Wait for texts one after the other; what came up to the end of the last."""
        got, deadline = "", time.monotonic() + 60
        for text in expected:
            while text not in self.seen:
                assert time.monotonic() < deadline, f"{text!r} did not come; got {got + self.seen!r}"
                assert self._more(), f"ended before {text!r}; got {got + self.seen!r}"
            before, self.seen = self.seen.split(text, 1)
            got += before + text
        return got

    def end(self) -> int:
        """Wait for the end; the exit code."""
        while self._more():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])

    def close(self) -> None:
        """Leave nothing behind."""
        try:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._master)

    def _more(self) -> bool:
        if not select.select([self._master], [], [], 60)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the program has ended
            return False
        text = self.seen + piece.decode(errors="replace")
        self.seen = ESCAPES.sub("", text.replace("\x1b[?2004h", READY)).replace("\r", "")
        return bool(piece)


@pytest.fixture
def chat(shell_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """`chat("-m", …)` begins a session in an empty folder."""
    begun: list[Terminal] = []

    def begin(*arguments: str) -> Terminal:
        begun.append(Terminal([*arguments], shell_environment, tmp_path))
        return begun[-1]

    yield begin
    for session in begun:
        session.close()


def test_a_session_is_saved_and_resumed(chat: Callable[..., Terminal], chatty: Path, tmp_path: Path) -> None:
    session = chat("-m", str(chatty), "--system", "be", "-n", "6", "--lookup", "3")
    session.until("Ctrl-D ends", READY)
    session.type("/help\r")
    session.until("/load FILE", READY)
    session.type("the sea\r")
    session.until("the sea", READY)
    session.type("/set temperature hot\r")
    session.until("error: temperature must be a finite number", READY)
    session.type("/set temperature 0.5\r")
    session.until(READY)
    session.type("/lode\r")
    session.until("error: expected one of the lines", READY)
    session.type("\x1b[A\x1b[A\x1b[A\x1b[A\r")  # four lines up the history: the sea, again
    session.until("the sea", READY)
    session.type("/save talk.json\r")
    session.until("wrote talk.json", READY)
    session.type("/save missing/talk.json\r")
    session.until("error: expected a file that can be written", READY)
    session.type("\x04")
    assert session.end() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [message["content"] for message in saved["messages"][:4:2]] == ["be", saved["messages"][2]["content"]]
    assert saved["messages"][1]["content"] == saved["messages"][3]["content"] == "the sea"
    assert (saved["settings"]["temperature"], saved["settings"]["max_tokens"]) == (0.5, 6)

    session = chat("-m", str(chatty), "--resume", "talk.json", "--temperature", "0.1")
    session.until("5 messages", READY)
    session.type("/reset\r")
    session.until(READY)
    session.type("/set\r")
    assert "max_tokens 6" in session.until("temperature 0.1", READY)
    session.type("/load talk.json\r")
    session.until("5 messages", READY)
    session.type("/system\r")
    session.until(READY)
    session.type("/save again.json\r")
    session.until("wrote again.json", READY)
    session.type("\x04")
    assert session.end() == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["messages"] == saved["messages"][1:]
    assert again["settings"] == saved["settings"]


def test_ctrl_c_stops_the_answer_and_not_the_session(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    session = chat(
        "-n",
        "490",
        "-t",
        "1",
        "--dtype",
        "float32",
        "--repetition-penalty",
        "1",
        "--temperature",
        "1",
        "--stop",
        "\u2603",
    )
    said = session.until("Ctrl-D ends", READY)
    assert "default has no chat template: it continues what you write" in said
    session.type("some words\x03")  # Ctrl-C clears the line
    session.until(READY)
    session.type("Once upon a time\r")
    session.until("Once upon a time", " ", " ", " ", " ")
    session.type("\x03")
    session.until("stopped", READY)
    session.type("/save talk.json\r")
    session.until("wrote talk.json", READY)
    session.type("\x04")
    assert session.end() == 0
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert messages[0] == {"role": "user", "content": "Once upon a time"}
    assert 0 < len(messages[1]["content"].split()) < 450


@pytest.mark.parametrize("line", ["llmcli chat", "echo hello | llmcli chat", "llmcli chat </dev/null | cat"])
def test_without_a_terminal_it_names_generate(shell: Shell, line: str) -> None:
    result = shell(line)
    assert (result.code, result.out) == (2, "")
    assert "expected a terminal" in result.err
    assert "llmcli generate" in result.err
    assert result.err.count("\n") == 1


def test_a_session_that_cannot_be_resumed(chat: Callable[..., Terminal]) -> None:
    session = chat("-q", "--resume", "missing.json")
    assert session.end() == 5
    assert "missing.json" in session.seen
    assert session.seen.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"), [('{"schema"', "expected JSON"), ("[]", "llmcli/chat/1"), ("", "expected JSON")]
)
def test_a_file_that_is_no_session(tmp_path: Path, chatty: Path, text: str, said: str) -> None:
    (tmp_path / "torn.json").write_text(text)
    with pytest.raises(InputError, match=said):
        load(talk(chatty), str(tmp_path / "torn.json"), {})


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    with pytest.raises(ResourceError, match=r"pip install 'llmcli\[chat\]'"):
        line_editor()
