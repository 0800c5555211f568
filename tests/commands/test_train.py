"""`llmcli train` from end to end: a model directory that llmcli and transformers load, signals, bad input."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from llmcli import loading
from llmcli.cli import cli
from llmcli.errors import InputError
from llmcli.training import checkpoint
from llmcli.training import trainer as training
from tests.conftest import Result
from tests.tiny import TEXT

SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
FLAGS = ["--vocab-size", "300", "--batch-size", "2", "--warmup-steps", "1", "--val-fraction", "0.1", "-t", "2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two books and a tiny shape."""
    (tmp_path / "books").mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "books" / name).write_text((TEXT + "\n\n") * 3)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def places(folder: Path) -> list[str]:
    """The flags that name the books, the shape and the output."""
    return ["--data", str(folder / "books"), "--config", str(folder / "config.json"), "--output", str(folder / "model")]


def train(folder: Path, *flags: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a run on the books, into folder/model unless the flags say otherwise."""
    result = CliRunner().invoke(cli, ["train", *places(folder), *FLAGS, *flags])
    return result.exit_code, result.stdout, result.stderr


def test_makes_a_model_directory(folder: Path) -> None:
    code, out, err = train(
        folder, "--iters", "4", "--eval-every", "2", "--log", str(folder / "logs" / "1.jsonl"), "--json", "--seed", "3"
    )
    assert (code, err.count("validation loss")) == (0, 2)
    summary = json.loads(out)
    assert summary["schema"] == "llmcli/train/1"
    assert summary["step"] == 4
    assert summary["n_tokens"] == 4 * 2 * 32
    assert summary["finish_reason"] == "stop"
    assert summary["recipe"]["seed"] == 3
    log = [json.loads(line) for line in (folder / "logs" / "1.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in log if "val_loss" in line] == [2, 4]
    assert log[-1]["val_loss"] == summary["val_loss"]
    loaded = loading.load(folder / "model", pack=False)
    assert loaded.tokenizer.vocab_size == 300
    assert sum(p.numel() for p in loaded.model.parameters()) == summary["n_parameters"]


def test_transformers_loads_it(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert train(folder, "--iters", "3", "--dtype", "bfloat16", "-q")[0] == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    ours = loading.load(folder / "model", dtype="float32")
    ids = torch.tensor([tokenizer("The old ship lay still").input_ids])
    assert ids[0].tolist() == ours.tokenizer.encode("The old ship lay still")
    with torch.inference_mode():
        torch.testing.assert_close(ours.model(ids), model(ids).logits, rtol=1e-4, atol=1e-4)


def test_schedule_and_memory_flags(folder: Path) -> None:
    more = ["--schedule", "wsd", "--decay-steps", "2", "--label-smoothing", "0.1", "--activation-checkpointing"]
    code, _, _ = train(folder, "--iters", "5", "-q", *more, "--log", str(folder / "log.jsonl"))
    assert code == 0
    rates = [json.loads(line)["lr"] for line in (folder / "log.jsonl").read_text().splitlines() if '"lr"' in line]
    assert rates == [1e-3, 1e-3, 1e-3, 1e-3, 5e-4]
    recipe = json.loads((folder / "model" / "training.json").read_text())["recipe"]
    assert (recipe["label_smoothing"], recipe["activation_checkpointing"]) == (0.1, True)


def test_same_flags_same_bytes_whatever_the_threads(folder: Path) -> None:
    for name, threads in (("a", "1"), ("b", "2")):
        assert train(folder, "--iters", "3", "-q", "-t", threads, "--output", str(folder / name))[0] == 0
    for file in (folder / "a").glob("[!l]*"):  # the log has times
        assert file.read_bytes() == (folder / "b" / file.name).read_bytes(), file.name


def test_resume_ends_with_the_same_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(folder, "--iters", "6", "-q", "--output", str(folder / "whole"))[0] == 0
    step = training.Trainer.step

    def fail_at_five(trainer: training.Trainer) -> training.Step:
        if trainer.steps_done == 4:
            raise InputError("stopped here")
        return step(trainer)

    begun = ["--iters", "6", "-q", "--save-every", "3", "--resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", fail_at_five)
        assert train(folder, *begun)[0] == 2
    assert json.loads((folder / "model" / "training.json").read_text())["step"] == 3
    assert train(folder, *begun)[0] == 0
    whole, resumed = (load_file(folder / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_resume_refuses_another_shape(folder: Path) -> None:
    assert train(folder, "--iters", "2")[0] == 0
    (folder / "config.json").write_text(json.dumps(SHAPE | {"n_layer": 3}))
    code, out, err = train(folder, "--iters", "4", "--resume", "auto")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert "has n_layer 2, this one would have 3" in err
    flags = [
        "--data",
        str(folder / "books"),
        "--output",
        str(folder / "model"),
        "--iters",
        "3",
        "--resume",
        "auto",
        "-q",
    ]
    assert CliRunner().invoke(cli, ["train", *flags]).exit_code == 0
    assert CliRunner().invoke(cli, ["train", *flags, "--preset", "gpt2-nano"]).exit_code == 5


def test_a_directory_where_another_process_trains(folder: Path) -> None:
    with checkpoint.alone(folder / "model"):
        code, out, err = train(folder, "--iters", "1", "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "another process trains there" in err
    assert not list((folder / "model").iterdir())
    assert train(folder, "--iters", "1", "-q")[0] == 0


def test_stdin_and_validation_files(folder: Path) -> None:
    given = ["train", "--data", "-", "--val", str(folder / "books" / "one.txt"), *FLAGS, "--json", "-q", "--iters", "1"]
    given += ["--config", str(folder / "config.json"), "--output", str(folder / "model")]
    result = CliRunner().invoke(cli, given, input=TEXT * 4)
    assert result.exit_code == 0, result.stderr
    tokens = loading.load(folder / "model").tokenizer.encode((TEXT + "\n\n") * 3)
    assert json.loads(result.stdout)["val_tokens"] == len(tokens)


def test_a_pattern_that_the_shell_expands(folder: Path, shell: Callable[..., Result]) -> None:
    flags = f"--config {folder}/config.json {' '.join(FLAGS)} --iters 1 -q --json --output"
    losses = []
    for data in ("books/*.txt", "books"):
        done = shell(f"llmcli train --data {folder}/{data} {flags} out")
        assert done.code == 0, done.err
        losses.append(json.loads(done.out)["val_loss"])
    assert losses[0] == losses[1]


def test_needs_data(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["train", "--output", str(folder / "model")])
    assert result.exit_code == 2
    assert "--data" in result.stderr


def test_summary_in_words(folder: Path) -> None:
    code, out, _ = train(folder, "--iters", "1", "-q")
    assert code == 0
    assert out.startswith(f"{folder / 'model'}: 0.04 M parameters, 1 steps")
    assert "bits per byte" in out


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--data", "missing.txt"], 5, "cannot read missing.txt"),
        (["--tokenizer", "missing"], 5, "missing"),
        (["--config", "missing.json"], 5, "missing.json"),
        (["--vocab-size", "100"], 2, "--vocab-size"),
        (["--iters", "0"], 2, "--iters"),
        (["--lr", "nan"], 2, "--lr"),
        (["--min-lr", "1"], 2, "min_lr"),
        (["--warmup-steps", "9", "--iters", "5"], 2, "ends before it starts"),
        (["--decay-steps", "2", "--iters", "5"], 2, "belongs to schedule wsd"),
        (["--val-fraction", "0.9"], 2, "--val-fraction"),
        (["--ctx-size", "5000"], 2, "give more text or a smaller --ctx-size"),
        (["--dtype", "float16"], 2, "dtype"),
        (["--lr", "1e6", "--clip", "0", "--warmup-steps", "0", "--iters", "50"], 2, "diverged"),
        (["--output", "/dev/null/model", "--iters", "1"], 6, "/dev/null/model"),
    ],
)
def test_refuses_in_one_line(folder: Path, flags: list[str], code: int, words: str) -> None:
    found, out, err = train(folder, "-q", *flags)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err


def test_refuses_bytes_that_are_not_text(folder: Path) -> None:
    (folder / "books" / "one.txt").write_bytes(b"caf\xe9")
    code, _, err = train(folder)
    assert code == 2
    assert "0xe9 at offset 3" in err


def test_a_full_disk_is_exit_6(folder: Path) -> None:
    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))

    done = subprocess.run(
        [sys.executable, "-m", "llmcli", "train", *places(folder), *FLAGS, "-q", "--iters", "1"],
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.name for file in (folder / "model").iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(folder: Path, number: int, code: int, shell_environment: dict[str, str]) -> None:
    log, model = folder / "log.jsonl", folder / "model"
    process = subprocess.Popen(
        ["llmcli", "train", *places(folder), *FLAGS, "--log", str(log), "--iters", "1000000", "--json"],
        env=shell_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = time.monotonic()
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() - begun < 60:
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (code, -number), err
    if number == signal.SIGINT:
        assert json.loads(out)["finish_reason"] == "interrupt"
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert json.loads((model / "training.json").read_text())["step"] == steps[-1]
        assert loading.load(model).config["n_layer"] == SHAPE["n_layer"]
    else:
        assert out == ""
        assert not model.exists() or not any(model.iterdir())


def test_verify_resume_proves_it_and_leaves_output_alone(folder: Path) -> None:
    code, out, err = train(folder, "--iters", "9", "--verify-resume", "3", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["schema"], document["steps"], document["stopped_at"]) == ("llmcli/verify-resume/1", 3, 1)
    assert document["equal"]
    assert document["sha256_straight"] == document["sha256_resumed"]
    assert not (folder / "model").exists()
    code, out, err = train(folder, "--iters", "9", "--verify-resume", "3", "--dropout", "0.5", "-q")
    assert code == 0, err  # each step draws from its own seed
    assert out.count("\n") == 2


def test_a_difference_is_exit_3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "verify_resume", lambda *_: ("a" * 64, "b" * 64))
    code, _, err = train(folder, "--verify-resume", "3", "-q")
    assert (code, "straight and resumed" in err) == (3, True)


def test_tensorboard_reads_what_the_log_has(folder: Path, shell: Callable[..., Result]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = shlex.join([*places(folder), *FLAGS, "--iters", "3", "--sample-every", "2", "-q"])
    done = shell(f"llmcli train {flags} --tensorboard board")
    assert done.code == 0, done.err
    events = EventAccumulator(str(folder / "board")).Reload()
    log = [json.loads(line) for line in (folder / "model" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "grad_norm", "val_loss"):
        logged = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in log if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == logged
    texts = [(event.step, event.tensor_proto.string_val) for event in events.Tensors("sample/text_summary")]
    assert texts == [(line["step"], [line["sample"].encode()]) for line in log if "sample" in line] != []


def test_tensorboard_that_is_absent_is_exit_6(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = train(folder, "--tensorboard", "board", "-q")
    assert (code, "llmcli[tensorboard]" in err) == (6, True)


def test_the_log_of_a_new_run_begins_anew_and_that_of_a_resumed_one_goes_on(folder: Path) -> None:
    log = folder / "model" / "log.jsonl"
    for flags, steps in (((), [1, 2]), ((), [1, 2]), (("--iters", "3", "--resume", "auto"), [1, 2, 3])):
        assert train(folder, "--iters", "2", "-q", "--val-fraction", "0", *flags)[0] == 0
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == steps


def test_tokens_of_an_earlier_run_are_used_again(folder: Path) -> None:
    flags = ["--iters", "2", "--tokenizer", str(folder / "words"), "--token-cache", str(folder / "tokens")]
    assert train(folder, "--iters", "1", "--output", str(folder / "words"))[0] == 0
    results = [train(folder, *flags, "--output", str(folder / name), "--seed", "1") for name in "ab"]
    assert [code for code, _, _ in results] == [0, 0]
    assert [err.count("tokens of an earlier run") for _, _, err in results] == [0, 2]
    assert (folder / "a" / "model.safetensors").read_bytes() == (folder / "b" / "model.safetensors").read_bytes()
    assert len(list((folder / "tokens").iterdir())) == 2


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_a_shape_with_rotary_positions(family: str, tmp_path: Path) -> None:
    shape = {
        "model_type": family, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 32,
    }  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    (tmp_path / "text.txt").write_text(TEXT * 10)
    flags = f"--config {tmp_path}/shape.json --vocab-size 300 --iters 2 --batch-size 2 -q --output {tmp_path}/model"
    done = CliRunner().invoke(cli, ["train", str(tmp_path / "text.txt"), *flags.split()])
    assert done.exit_code == 0, done.stderr
    done = CliRunner().invoke(cli, ["generate", "-m", str(tmp_path / "model"), "The sea", "-n", "3"])
    assert done.exit_code == 0, done.stderr
