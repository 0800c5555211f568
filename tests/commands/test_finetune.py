"""`llmcli finetune` from end to end: whole and with adapters, every kind of data, resuming, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from llmcli import loading
from llmcli.cli import cli
from llmcli.errors import InputError
from llmcli.training import trainer as training
from tests.conftest import Result
from tests.tiny import TEXT

FLAGS = ["--iters", "4", "--batch-size", "2", "-t", "2", "-q"]
LORA = ["--lora", "2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a text, and questions and answers."""
    (tmp_path / "text.txt").write_text(TEXT * 3)
    pairs = [{"prompt": f"{n} boys, the ship", "completion": " lay still"} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path


def finetune(tiny: Path, folder: Path, data: str, *flags: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a run on folder/data, into folder/model unless the flags say otherwise."""
    given = ["-m", str(tiny), "--data", data if data == "-" else str(folder / data), "--output", str(folder / "model")]
    result = CliRunner().invoke(cli, ["finetune", *given, *FLAGS, *flags], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(directory / "model.safetensors") for directory in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("flags", [[], LORA])
@pytest.mark.parametrize("data", ["text.txt", "pairs.jsonl"])
def test_makes_a_plain_model_directory(tiny_gpt2: Path, folder: Path, data: str, flags: list[str]) -> None:
    code, out, err = finetune(tiny_gpt2, folder, data, *flags, "--json", "--log", str(folder / "log.jsonl"))
    assert code == 0, err
    summary = json.loads(out)
    assert summary["schema"] == "llmcli/finetune/1"
    assert (summary["n_trained_parameters"] < summary["n_parameters"]) == (flags == LORA)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4]
    assert log[-1]["val_loss"] == summary["val_loss"]
    before, after = load_file(tiny_gpt2 / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {name for name in before if ".h." in name and ("c_" in name and name.endswith("weight"))}
    assert changed == (adapted if flags == LORA else set(before))
    loaded = loading.load(folder / "model")
    assert loaded.tokenizer.encode("The sea") == loading.load(tiny_gpt2).tokenizer.encode("The sea")


@pytest.mark.parametrize("flags", [["--lr", "0.01"], [*LORA, "--lr", "0.03"]])
def test_learns_the_completions(tiny_gpt2: Path, folder: Path, flags: list[str], shell: Callable[..., Result]) -> None:
    code, _, err = finetune(tiny_gpt2, folder, "pairs.jsonl", *flags, "--iters", "40")
    assert code == 0, err
    done = shell(f"llmcli generate -m {folder}/model '7 boys, the ship' --repetition-penalty 1")
    assert (done.code, done.out.rstrip("\n")) == (0, " lay still")


@pytest.mark.parametrize("flags", [[], LORA])
def test_same_bytes_whatever_the_threads(tiny_gpt2: Path, folder: Path, flags: list[str]) -> None:
    for name, threads in (("a", "1"), ("b", "2")):
        code, _, err = finetune(tiny_gpt2, folder, "pairs.jsonl", *flags, "-t", threads, "--output", str(folder / name))
        assert code == 0, err
    for file in (folder / "a").glob("[!l]*"):  # the log has times
        assert file.read_bytes() == (folder / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(("data", "flags"), [("text.txt", LORA), ("pairs.jsonl", []), ("pairs.jsonl", LORA)])
def test_resume_ends_with_the_same_weights(
    tiny_gpt2: Path, folder: Path, data: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = [*flags, "--save-every", "2", "--resume", "auto"]
    assert finetune(tiny_gpt2, folder, data, *flags, "--output", str(folder / "whole"))[0] == 0
    step = training.Trainer.step

    def fail_at_four(trainer: training.Trainer) -> training.Step:
        if trainer.steps_done == 3:
            raise InputError("stopped here")
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", fail_at_four)
        assert finetune(tiny_gpt2, folder, data, *begun)[0] == 2
    assert json.loads((folder / "model" / "training.json").read_text())["step"] == 2
    code, _, err = finetune(tiny_gpt2, folder, data, *begun)
    assert code == 0, err
    assert same(folder / "whole", folder / "model")


def test_messages_leave_their_template_with_the_model(tiny_gpt2: Path, folder: Path) -> None:
    talk = [{"role": "user", "content": "sea"}, {"role": "assistant", "content": "ship"}]
    code, _, err = finetune(tiny_gpt2, folder, "-", stdin=(json.dumps({"messages": talk}) + "\n") * 3)
    assert code == 0, err
    settings = json.loads((folder / "model" / "tokenizer_config.json").read_text())
    assert "### assistant" in settings["chat_template"]


def test_validation_file_and_plain_text_on_stdin(tiny_gpt2: Path, folder: Path) -> None:
    code, out, err = finetune(tiny_gpt2, folder, "-", "--val", str(folder / "pairs.jsonl"), "--json", stdin=TEXT)
    assert code == 0, err
    assert json.loads(out)["val_tokens"] > 20


def test_train_reads_jsonl_of_texts_and_refuses_examples(folder: Path) -> None:
    (folder / "texts.jsonl").write_text((json.dumps({"text": TEXT}) + "\n") * 3)
    flags = ["--preset", "gpt2-nano", "-c", "16", "--vocab-size", "300", "--output", str(folder / "new"), *FLAGS]
    assert CliRunner().invoke(cli, ["train", str(folder / "texts.jsonl"), *flags]).exit_code == 0
    refused = CliRunner().invoke(cli, ["train", str(folder / "pairs.jsonl"), *flags])
    assert refused.exit_code == 2
    assert "pairs.jsonl:1: train learns whole texts" in refused.stderr


@pytest.mark.parametrize(
    ("data", "flags", "code", "words"),
    [
        ("missing.jsonl", [], 5, "missing.jsonl"),
        ("bad.jsonl", [], 2, "bad.jsonl:2: not JSON"),
        ("pairs.jsonl", ["--lora-alpha", "3"], 2, "--lora RANK"),
        ("pairs.jsonl", ["--lora", "2", "--lora-targets", "q_proj"], 2, "c_attn"),
        ("pairs.jsonl", ["-m", "missing"], 5, "missing"),
        ("pairs.jsonl", ["-c", "65"], 2, "at most 64"),
        ("text.txt", ["--warmup-steps", "5"], 2, "ends before it starts"),
        ("text.txt", ["--output", "{tiny}"], 2, "is the model that is tuned"),
        ("text.txt", ["--resume", "{tiny}"], 5, "is no run of finetune"),
    ],
)
def test_refuses_in_one_line(tiny_gpt2: Path, folder: Path, data: str, flags: list[str], code: int, words: str) -> None:
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    found, out, err = finetune(tiny_gpt2, folder, data, *(flag.format(tiny=tiny_gpt2) for flag in flags))
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert words in err
    assert not (folder / "model").exists()


def test_resuming_needs_the_same_beginning(tiny_gpt2: Path, folder: Path) -> None:
    assert finetune(tiny_gpt2, folder, "text.txt", *LORA)[0] == 0
    code, _, err = finetune(tiny_gpt2, folder, "text.txt", "--lora", "3", "--resume", "auto")
    assert code == 5
    assert '"rank": 2' in err


LABELS = [{"text": f"{n} {word} {n}", "label": word == "ship"} for n in range(16) for word in ("ship", "captain")]


@pytest.fixture
def labelled(folder: Path) -> Path:
    """The folder with texts of two classes that differ in one word."""
    names = {True: "thing", False: "person"}
    lines = [json.dumps({**one, "label": names[bool(one["label"])]}) + "\n" for one in LABELS]
    (folder / "labelled.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("flags", [["--lr", "0.003"], [*LORA, "--lr", "0.01"]])
def test_learns_to_classify(tiny_gpt2: Path, labelled: Path, flags: list[str], shell: Callable[..., Result]) -> None:
    more = ["--task", "classify", "--iters", "30", "--batch-size", "8", "--json"]
    code, out, err = finetune(tiny_gpt2, labelled, "labelled.jsonl", *flags, *more)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["val_accuracy"] == summary["val_macro_f1"] == 1
    assert summary["val_figures"]["labels"] == ["person", "thing"]
    done = shell(f"printf '3 ship 5\\n9 captain 9\\n' | llmcli classify -m {labelled}/model")
    assert done.code == 0, done.err
    answers = [line.split("\t") for line in done.out.splitlines()]
    assert [label for label, _ in answers] == ["thing", "person"]
    assert all(0.8 < float(p) <= 1 for _, p in answers)


def test_classifier_resumes_to_the_same_weights_and_keeps_its_labels(
    tiny_gpt2: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--task", "classify", *LORA, "--token-dropout", "0.2"]
    assert finetune(tiny_gpt2, labelled, "labelled.jsonl", *flags, "--output", str(labelled / "whole"))[0] == 0
    step = training.Trainer.step

    def fail_at_four(trainer: training.Trainer) -> training.Step:
        if trainer.steps_done == 3:
            raise InputError("stopped here")
        return step(trainer)

    begun = [*flags, "--save-every", "3", "--resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", fail_at_four)
        assert finetune(tiny_gpt2, labelled, "labelled.jsonl", *begun)[0] == 2
    code, _, err = finetune(tiny_gpt2, labelled, "labelled.jsonl", *begun)
    assert code == 0, err
    assert same(labelled / "whole", labelled / "model")
    (labelled / "other.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    code, _, err = finetune(tiny_gpt2, labelled, "other.jsonl", *begun, "--val-fraction", "0")
    assert code == 5
    assert 'labels ["person", "thing"]' in err


def test_figures_of_classes_on_stderr(tiny_gpt2: Path, labelled: Path) -> None:
    given = ["--data", str(labelled / "labelled.jsonl"), "--output", str(labelled / "model"), "--iters", "1"]
    result = CliRunner().invoke(cli, ["finetune", "-m", str(tiny_gpt2), "--task", "classify", *given])
    assert result.exit_code == 0, result.stderr
    for words in ("macro F1", "precision", "as person", "as thing", "\nmacro"):
        assert words in result.stderr
    assert "accuracy" in result.stdout


@pytest.mark.parametrize(
    ("data", "val", "words"),
    [
        ("text.txt", None, "text.txt: expected JSONL with text and label"),
        ("pairs.jsonl", None, "pairs.jsonl:1: expected a label"),
        ("labelled.jsonl", '{"text": "a", "label": "animal"}', "val.jsonl:1: the label 'animal'"),
    ],
)
def test_classify_refuses(tiny_gpt2: Path, labelled: Path, data: str, val: str | None, words: str) -> None:
    more = []
    if val:
        (labelled / "val.jsonl").write_text(val)
        more = ["--val", str(labelled / "val.jsonl")]
    code, out, err = finetune(tiny_gpt2, labelled, data, "--task", "classify", *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize("flags", [[], LORA])
def test_verify_resume(tiny_gpt2: Path, folder: Path, flags: list[str]) -> None:
    code, out, err = finetune(tiny_gpt2, folder, "pairs.jsonl", *flags, "--verify-resume", "3")
    assert (code, out.count("\n")) == (0, 2), err
    assert not (folder / "model").exists()


def test_a_classifier_writes_no_samples(tiny_gpt2: Path, folder: Path) -> None:
    code, _, err = finetune(tiny_gpt2, folder, "pairs.jsonl", "--task", "classify", "--sample-every", "2")
    assert (code, "--sample-every" in err) == (2, True)
    code, _, err = finetune(tiny_gpt2, folder, "pairs.jsonl", "--token-dropout", "0.1")
    assert (code, "--token-dropout: expected --task classify" in err) == (2, True)
