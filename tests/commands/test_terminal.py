"""Prompts, strict UTF-8, escapes, output files and tables."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from llmcli.cli import COMMANDS, cli
from llmcli.commands.terminal import decode, open_output, read_bytes, table, to_json, unescape, wants_color
from llmcli.errors import InputError, ModelError


@pytest.fixture(autouse=True)
def _sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "sample", ("tests.commands.sample", "A command for tests."))


def run(*arguments: str, stdin: bytes | str = b"", **environment: str) -> Result:
    return CliRunner().invoke(cli, ["sample", *arguments], input=stdin, env=environment)


@pytest.mark.parametrize(
    ("arguments", "stdin", "text"),
    [
        (["argument"], "", "argument"),
        (["argument"], "piped\n", "piped\nargument"),
        (["argument", "-p", "flag"], "", "argument"),
        (["-p", "flag"], "piped", "flag"),
        (["-p", "flag", "-f", "missing"], "", "flag"),
        (["-"], "piped  ", "piped  "),
        (["-p", "-"], "piped", "piped"),
        (["-f", "-"], "piped", "piped"),
        ([], "piped\r\n", "piped\r\n"),
        (["--escape", "a\\tb\\u00e9"], "\\t", "\\ta\tbé"),
        (["a\\tb"], "", "a\\tb"),
        (["--", "-x"], "", "-x"),
    ],
)
def test_prompt_is_found(arguments: list[str], stdin: str, text: str) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes.decode() == f"text None None 0 0.0 {text}"


def test_prompt_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes("é\r\n".encode())
    assert run("-f", str(tmp_path / "prompt"), stdin="ignored").stdout_bytes.endswith("0.0 é\r\n".encode())


@pytest.mark.parametrize("arguments", [[], [""], ["-p", ""], ["-f", "-"], ["-f", "/dev/null"]])
def test_empty_prompt_is_refused(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "empty" in result.stderr


def test_invalid_utf8_names_the_offset(tmp_path: Path) -> None:
    bad = "ab é".encode() + b"\xff\n"
    (tmp_path / "bad").write_bytes(bad)
    for result in (run(stdin=bad), run("-f", str(tmp_path / "bad")), run(os.fsdecode(bad))):
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "0xff at offset 5" in result.stderr
    assert run("--encoding-errors", "replace", stdin=bad).stdout_bytes.endswith("ab é\ufffd\n".encode())


@given(st.binary())
def test_decode_is_strict(data: bytes) -> None:
    try:
        assert decode(data, "x").encode() == data
    except InputError as error:
        offset = int(str(error).partition("offset ")[2].split()[0])
        data[:offset].decode()
        with pytest.raises(UnicodeDecodeError):
            data.decode()


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_bytes(str(tmp_path / "missing"))
    for name in (str(tmp_path), "nul\0byte"):
        with pytest.raises(InputError):
            read_bytes(name)


@pytest.mark.parametrize(
    ("text", "plain"),
    [(r"a\nb", "a\nb"), (r"\\n", "\\n"), (r"\x41\u00e9\U0001F600", "Aé😀"), (r"\0\"\'\r\t", "\0\"'\r\t"), ("é", "é")],
)
def test_unescape(text: str, plain: str) -> None:
    assert unescape(text) == plain


@pytest.mark.parametrize("text", ["end\\", r"\q", r"\x4", r"\ud800", r"\U00110000", "\\\n"])
def test_unescape_refuses(text: str) -> None:
    with pytest.raises(InputError):
        unescape(text)


@given(st.text())
def test_unescape_inverts_escaping(text: str) -> None:
    assert unescape(text.replace("\\", "\\\\").replace("\n", "\\n")) == text


def test_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("before")
    with contextlib.suppress(RuntimeError), open_output(str(target)) as out:
        out.write("half")
        raise RuntimeError
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]
    with open_output(str(target)) as out:
        out.write("é")
        out.write(b"\xff")
        assert target.read_text() == "before"
    assert target.read_bytes() == b"\xc3\xa9\xff"
    assert os.listdir(tmp_path) == ["out"]


def test_output_keeps_links_and_modes(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("")
    target.chmod(0o640)
    link.symlink_to(target)
    with open_output(str(link)) as out:
        out.write("x")
    assert link.is_symlink()
    assert target.read_text() == "x"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    with open_output(str(tmp_path / "new")) as out:
        out.write("x")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("name", ["missing/out", ".", "file/out"])
def test_output_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError), open_output(str(tmp_path / name)):
        pass


def test_json_has_no_nan() -> None:
    line = to_json({"a": [math.nan, 1.5, (math.inf,)], "b": "é"}, indent=None)
    assert line == '{"a": [null, 1.5, [null]], "b": "é"}\n'
    assert json.loads(to_json({"a": 1})) == {"a": 1}


def test_table_is_plain_when_nobody_watches() -> None:
    text = table(["name", "n"], [["a", "10"], ["long [red]name", "5"]], right=[1])
    assert text == "name             n\na               10\nlong [red]name   5\n"


@pytest.mark.parametrize(
    ("environment", "terminal", "color"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_color_rules(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal: bool, color: bool) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    class Stream:
        def isatty(self) -> bool:
            return terminal

    assert wants_color(Stream()) is color


@pytest.mark.parametrize(
    "arguments",
    [
        ["--temperature", "nan"],
        ["--temperature", "-1"],
        ["--temperature", "inf"],
        ["--top-p", "1.5"],
        ["--top-k", "-1"],
        ["--min-p", "-0.1"],
        ["--repetition-penalty", "0"],
        ["--presence-penalty", "nan"],
        ["--seed", "-1"],
        ["--seed", "9223372036854775808"],
        ["--seed", "often"],
        ["--device", "tpu"],
        ["--dtype", "int3"],
        ["-t", "0"],
        ["--format", "csv", "--json"],
        ["--format", "xml"],
    ],
)
def test_absurd_values_are_refused(arguments: list[str]) -> None:
    result = run("x", *arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_aliases_work_and_hide() -> None:
    assert run("x", "--temp", "0.5", "--checkpoint", "m", "--json").stdout == "json m None 0 0.5 x"
    help_text = run("--help").output
    assert "--temperature" in help_text
    for alias in ("--temp ", "--checkpoint", "--repeat-penalty"):
        assert alias not in help_text


def test_flag_beats_environment_beats_default() -> None:
    assert run("x", LLMCLI_SAMPLE_SEED="7").stdout == "text None None 7 0.0 x"
    assert run("x", "--seed", "8", LLMCLI_SAMPLE_SEED="7").stdout == "text None None 8 0.0 x"
    assert run("x", LLMCLI_SAMPLE_THREADS="none").exit_code == 2


def test_random_seed_is_printed() -> None:
    result = run("x", "--seed", "random")
    assert result.stdout.split()[3] == result.stderr.splitlines()[0].removeprefix("seed: ")
    assert "a note" in result.stderr
    assert run("x", "-q").stderr == ""
