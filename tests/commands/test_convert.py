"""`llmcli convert` in a shell: other precisions, packed models, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import conversion, loading
from llmcli.checkpoints import safetensors
from llmcli.errors import InputError, ModelError
from llmcli.nn import prepacked
from tests.conftest import Result
from tests.marks import kernels_only
from tests.tiny import TEXT

Shell = Callable[..., Result]


def test_another_precision_in_the_layout_of_hugging_face(shell: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    made = shell(f"llmcli convert {tiny_gpt2} -o half --dtype bfloat16 --json && ls -A")
    assert (made.code, made.err) == (0, "")
    document, end = json.JSONDecoder().raw_decode(made.out)
    assert made.out[end:].split() == ["half"]
    assert (document["schema"], document["dtype"], document["packed"]) == ("llmcli/convert/1", "bfloat16", False)
    assert document["bytes_after"] < 0.6 * document["bytes_before"]
    assert 0 < document["logits_change"] < 0.1
    old, new = safetensors.open(tiny_gpt2), safetensors.open(tmp_path / "half")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name].bfloat16(), new[name]) for name in old)
    back = shell(f"llmcli convert -m {tiny_gpt2} -o same")
    assert back.out.startswith("same: float32, ")
    assert back.out.endswith(", the same logits\n")


@pytest.mark.parametrize("where", ["", "x.gguf"])
def test_float16_from_any_precision(invoke: Shell, tiny_gpt2: Path, tmp_path: Path, where: str) -> None:
    assert invoke(f"convert {tiny_gpt2} -o half --dtype bfloat16").code == 0
    made = invoke(f"convert half -o {where or 'x'} --dtype float16")
    assert (made.code, made.err) == (0, "")


def test_a_gguf_file_in_a_shell(shell: Shell, invoke: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    made = shell(f"llmcli convert {tiny_gpt2} -o x --format gguf --json && ls -A")
    document, end = json.JSONDecoder().raw_decode(made.out)
    assert (made.code, made.err, made.out[end:].split()) == (0, "", ["x"])
    assert (document["format"], document["dtype"], document["logits_change"]) == ("gguf", "float32", 0)
    small = invoke(f"convert {tiny_gpt2} -o y.gguf --quantize int8")
    assert small.out.startswith("y.gguf: float32 int8, ")
    texts = [invoke(f"generate -m {model} The -n 20").out for model in ("x", tiny_gpt2)]
    assert texts[0] == texts[1] != ""
    itself = invoke("convert y.gguf -o ./y.gguf")
    assert (itself.code, itself.out) == (2, "")
    assert "is the model that the new one is made from" in itself.err


@pytest.mark.slow
@kernels_only
@pytest.mark.parametrize("quantize", ["", "--quantize int4"])
def test_a_packed_model_writes_the_same_bytes(shell: Shell, tiny_gpt2: Path, tmp_path: Path, quantize: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    made = shell(f"llmcli convert {tiny_gpt2} -o p --packed {quantize}")
    assert (made.code, made.err) == (0, "")
    texts = shell(f"llmcli generate -m p The -n 20 && llmcli generate -m {tiny_gpt2} {quantize} The -n 20 -t 1")
    assert texts.code == 0
    assert texts.out[: len(texts.out) // 2] == texts.out[len(texts.out) // 2 :]
    scores = [shell(f"llmcli perplexity a.txt --json -m {model}") for model in ("p", f"{tiny_gpt2} {quantize}")]
    assert json.loads(scores[0].out)["ppl"] == json.loads(scores[1].out)["ppl"]
    again = shell("llmcli convert p -o q --packed && cmp p/model.safetensors q/model.safetensors")
    assert again.code == 0


@kernels_only
def test_packed_matrices_begin_at_cache_lines(tiny_gpt2: Path, tmp_path: Path) -> None:
    conversion.save(loading.load(tiny_gpt2, quantize="int8"), tmp_path / "p")
    for name, tensor in safetensors.open(tmp_path / "p").items():
        assert tensor.data_ptr() % (64 if name.endswith(".packed") else tensor.element_size()) == 0


@kernels_only
def test_a_packed_model_is_for_inference_as_it_is(tiny_gpt2: Path, tmp_path: Path) -> None:
    conversion.save(loading.load(tiny_gpt2), tmp_path / "p")
    for options in ({"pack": False}, {"dtype": "bfloat16"}, {"quantize": "int8"}):
        with pytest.raises(InputError, match="packed in float32 for inference on a CPU: use the model that it was"):
            loading.load(tmp_path / "p", **options)


@kernels_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, weights: config[prepacked.KEY].update(layout=2), "expected matrices packed in layout 1, got"),
        (
            lambda config, weights: config.update({prepacked.KEY: "yes"}),
            "packed in layout 1, got 'yes'",
        ),
        (lambda config, weights: config.update(n_embd=64), r"has shape \["),
        (lambda config, weights: config[prepacked.KEY].update(dtype="bfloat16"), "config.json asks for"),
        (lambda config, weights: weights.pop("h.0.attn.c_attn.packed"), "h.0.attn.c_attn.packed is missing"),
        (lambda config, weights: weights.update(x=torch.zeros(1)), "the tensor x has no place"),
        (
            lambda config, weights: weights.update({"packed_head": weights["packed_head"][64:]}),
            r"packed_head has shape \[",
        ),
    ],
)
def test_a_damaged_packed_model(
    tiny_gpt2: Path, tmp_path: Path, change: Callable[[Any, Any], object], message: str
) -> None:
    conversion.save(loading.load(tiny_gpt2), tmp_path / "p")
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    weights = {name: tensor.clone() for name, tensor in safetensors.open(tmp_path / "p").items()}
    change(config, weights)
    (tmp_path / "p" / "config.json").write_text(json.dumps(config))
    safetensors.save(tmp_path / "p" / "model.safetensors", weights)
    with pytest.raises(ModelError, match=message):
        loading.load(tmp_path / "p")


def test_nothing_appears_when_the_new_model_is_not_the_old_one(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = safetensors.save
    monkeypatch.setattr(
        safetensors, "save", lambda path, weights: save(path, {name: 2 * tensor for name, tensor in weights.items()})
    )
    with pytest.raises(RuntimeError, match="gives other logits than the one it was made from"):
        conversion.save(loading.load(tiny_gpt2, pack=False), tmp_path / "p")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("{model}", 2, "missing option '-o'"),
        ("{model} -o {model}", 2, "is the model that the new one is made from"),
        ("{model} -m {model} -o x", 2, "expected one model, got MODEL and --model"),
        ("{model} -o a.txt", 2, "expected a directory for the model, got the file 'a.txt'"),
        ("{model} -o a.txt/x", 2, "a.txt/x"),
        ("{model} -o x --quantize int8", 2, "--quantize here goes with --packed"),
        ("{model} -o x.gguf --packed", 2, "expected --packed or a GGUF file, got both"),
        ("{model} -o . --format gguf", 2, "expected a file for the model, got the directory '.'"),
        ("{model} -o a.txt/x.gguf", 2, "cannot write 'a.txt/x.gguf': 'a.txt' is no directory"),
        ("nowhere/at/all -o x", 5, "nowhere/at/all"),
        ("damaged -o x", 5, "damaged"),
    ],
)
def test_refusals(shell: Shell, tiny_gpt2: Path, tmp_path: Path, arguments: str, code: int, words: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    shutil.copytree(tiny_gpt2, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nonsense")
    result = shell(f"llmcli convert {arguments.format(model=tiny_gpt2)}")
    assert (result.code, result.out) == (code, "")
    assert words.lower() in result.err.lower()
    assert result.err.startswith("error: ")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.gguf").exists()
    assert not list(tmp_path.glob(".*"))
