"""`llmcli plot`: a run's own log through a real shell, pictures, colours, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.tiny import TEXT

SHAPE = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 9 / step}) + "\n" for step in range(1, 50)))
    return path


def test_a_run_writes_samples_and_its_curves_are_drawn(shell: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    done = shell(
        "llmcli train text.txt --config shape.json --vocab-size 270 --iters 6 --batch-size 2 --output runs/a "
        "--val-fraction 0.2 --eval-every 3 --sample-every 4 --sample-prompt 'The ' -t 1 && llmcli plot runs/a"
    )
    assert done.code == 0, done.err
    assert done.err.count("writes: The ") == 2
    records = [json.loads(line) for line in (tmp_path / "runs" / "a" / "log.jsonl").read_text().splitlines()]
    samples = [record for record in records if "sample" in record]
    assert [(record["step"], record["prompt"]) for record in samples] == [(4, "The "), (6, "The ")]
    assert all(record["sample"] for record in samples)
    _, plot = done.out.split("\n", 1)
    assert "a runs/a loss: " in plot
    assert "b runs/a val_loss: " in plot
    assert f"{records[-2 if 'sample' not in records[-2] else -3]['step']}" in plot


def test_json_and_pictures(invoke: Callable[..., Result], log: Path) -> None:
    document = json.loads(invoke(f"plot {log} --json").out)
    assert document["schema"] == "llmcli/plot/1"
    assert document["curves"][0]["values"][:2] == [9.0, 4.5]
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert invoke(f"plot {log} {log} --smooth 3 --log-scale --format {kind} -o picture.{kind}").code == 0
        assert (log.parent / f"picture.{kind}").read_bytes().startswith(start)


def test_colours_tell_curves_apart(invoke: Callable[..., Result], log: Path) -> None:
    plain = invoke(f"plot {log}").out
    assert "⣿" in plain
    assert "\x1b" not in plain
    coloured = invoke(f"plot {log} {log} --width 40", FORCE_COLOR="1").out
    assert "\x1b[33m⣿\x1b[0m" in coloured


def test_without_matplotlib_text_remains(
    invoke: Callable[..., Result], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = invoke(f"plot {log} --format png -o x.png")
    assert (result.code, "llmcli[plot]" in result.err) == (6, True)
    assert not (log.parent / "x.png").exists()
    assert invoke(f"plot {log}").code == 0


def test_bad_input(invoke: Callable[..., Result], log: Path) -> None:
    assert invoke("plot nowhere").code == 5
    assert invoke(f"plot {log} --metric accuracy").code == 2
    assert invoke("plot").code == 2


def test_what_other_commands_measured(shell: Callable[..., Result], tiny_gpt2: Path, log: Path) -> None:
    (log.parent / "a.txt").write_text(TEXT)
    done = shell(f"llmcli perplexity -m {tiny_gpt2} a.txt --json -o a.json && llmcli plot a.json --format png > a.png")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (log.parent / "a.png").read_bytes().startswith(b"\x89PNG")


def test_documents_stand_alone(invoke: Callable[..., Result], tiny_gpt2: Path, log: Path) -> None:
    (log.parent / "a.txt").write_text(TEXT)
    assert invoke(f"compare-perplexity {tiny_gpt2} {tiny_gpt2} --new-quantize int4 a.txt --json -o a.json").code == 0
    assert "a.txt" in invoke("plot a.json").out
    assert json.loads(invoke("plot a.json --json").out)["bars"][0]["name"] == "a.txt"
    for arguments in (f"a.json {log}", "a.json --metric lr", "a.json --smooth 2", "a.json --log-scale"):
        assert invoke(f"plot {arguments}").code == 2
    (log.parent / "a.json").write_text('{"schema": "llmcli/perplexity/1"}')
    assert invoke("plot a.json").code == 5
