"""T5 through the commands: generate in a shell, fine-tune on pairs, evaluate, quantise; what other commands say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.models.families import Case, write

PAIRS = [{"prompt": f"translate: {word}", "completion": f"{word} ship"} for word in ("old", "sea", "boy", "wind")]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("t5")
    write(directory, Case("t5", {"initializer_factor": 1.0}))
    return directory


def test_generate_in_a_shell(t5: Path, shell: Callable[..., Result]) -> None:
    done = shell(f"echo 'The sea' | llmcli generate -m {t5} -n 5 --json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["usage"]["completion_tokens"] == 5
    assert not document["choices"][0]["text"].startswith(" ")


def test_records_beams_and_quantised(t5: Path, invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "The sea"}\n{"prompt": "the old ship lay still"}\n')
    one, two = (invoke(f"generate -m {t5} --jsonl in.jsonl -n 4 --batch-size {n}") for n in (1, 2))
    assert one.code == two.code == 0, one.err
    texts = [[json.loads(line)["choices"] for line in done.out.splitlines()] for done in (one, two)]
    assert texts[0] == texts[1]
    assert invoke(f"generate -m {t5} 'The sea' -n 4 --beams 3 --num-samples 2").code == 0
    assert invoke(f"quantize {t5} -o small --to int8").code == 0
    assert invoke("generate -m small 'The sea' -n 4").code == 0


def test_finetune_learns_answers(t5: Path, invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    given = "--data pairs.jsonl --val pairs.jsonl --batch-size 4 -q"
    done = invoke(f"finetune -m {t5} {given} --output whole --lr 0.01 --iters 30")
    assert done.code == 0, done.err
    done = invoke("evaluate -m whole pairs.jsonl --json -n 8")
    assert json.loads(done.out)["metrics"]["exact"]["score"] == 1
    assert invoke("generate -m whole 'translate: sea'").out == "sea ship\n"
    done = invoke(f"finetune -m {t5} {given} --output adapted --lora 4 --iters 3 --activation-checkpointing --json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["n_trained_parameters"] < summary["n_parameters"] / 2
    assert invoke("generate -m adapted 'translate: sea' -n 4").code == 0


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("perplexity -m {t5} text.txt", 5, "kind encoder-decoder, expected decoder"),
        ("generate -m {t5} x --ctx-overflow slide", 2, "no text to slide along"),
        ("finetune -m {t5} --data text.txt --output out", 2, "text.txt: expected prompt and completion"),
        ("finetune -m {t5} --data text.txt --output out --task classify", 5, "kind encoder-decoder"),
        ("train --config {t5}/config.json --data text.txt --output out", 2, "makes decoders"),
    ],
)
def test_refuses(t5: Path, invoke: Callable[..., Result], tmp_path: Path, command: str, code: int, words: str) -> None:
    (tmp_path / "text.txt").write_text("The sea was calm. " * 20)
    done = invoke(command.format(t5=t5))
    assert (done.code, done.out) == (code, ""), done.err
    assert words in done.err
    assert not (tmp_path / "out").exists()
