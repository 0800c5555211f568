"""GGUF files on the command line: every command reads them as it reads a directory; damage is one line and exit 5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import gguf_files
from tests.conftest import Result
from tests.tiny import TEXT


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of tiny_gpt2, alone in a folder."""
    path = tmp_path_factory.mktemp("alone") / "model.gguf"
    gguf_files.write(tiny_gpt2, path)
    return path


def test_the_same_text_and_ids_in_a_shell(shell: Callable[..., Result], model: Path, tiny_gpt2: Path) -> None:
    commands = "echo The sea | llmcli generate -m {0} -n 20 && llmcli tokenize -m {0} 'The sea'"
    commands += " && llmcli detokenize -m {0} 5 6 7"
    got, expected = (shell(commands.format(path)) for path in (model, tiny_gpt2))
    assert got == expected
    assert (got.code, got.err) == (0, "")


@pytest.mark.parametrize(
    "arguments", ["perplexity a.txt --json -m {0}", "score a.txt -m {0}", "generate The -n 8 --quantize int8 -m {0}"]
)
def test_the_same_figures(
    invoke: Callable[..., Result], model: Path, tiny_gpt2: Path, tmp_path: Path, arguments: str
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    got, expected = (invoke(arguments.format(path)) for path in (model, tiny_gpt2))
    assert got.code == expected.code == 0, got.err
    if "--json" in arguments:
        assert json.loads(got.out)["ppl"] == json.loads(expected.out)["ppl"]
    else:
        assert got.out == expected.out


def test_back_to_a_directory_and_a_receipt(invoke: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    made = invoke(f"convert {model} -o back")
    assert made.code == 0, made.err
    assert made.out.endswith(", the same logits\n")
    settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == gguf_files.CHAT
    texts = [invoke(f"generate -m {path} The -n 12").out for path in (model, "back")]
    assert texts[0] == texts[1] != ""
    assert invoke(f"generate -m {model} The -n 12 --receipt r.json").code == 0
    assert invoke("replay r.json").code == 0


def test_tuning_begins_from_one(invoke: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 20)
    tuned = invoke(f"finetune -m {model} --data a.txt --output tuned --iters 2 --batch-size 2 --ctx-size 16 -q")
    assert tuned.code == 0, tuned.err
    assert invoke("generate -m tuned The -n 4").code == 0


def test_damage_is_one_line_and_exit_5(shell: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(model.read_bytes()[:-4000])
    (tmp_path / "none.gguf").write_bytes(b"nonsense" * 10)
    for name, words in (("short", "of the file|ends at"), ("none", "does not begin with 'GGUF'")):
        result = shell(f"llmcli generate -m {name}.gguf The")
        assert (result.code, result.out, result.err.count("\n")) == (5, "", 1)
        assert any(word in result.err for word in words.split("|"))
