"""Loading: what comes out of good files, and the one line that says what is wrong with bad ones."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading
from llmcli.checkpoints import safetensors
from llmcli.errors import InputError, ModelError, ResourceError
from tests.marks import kernels_only
from tests.tiny import TINY, write_checkpoint, write_tokenizer


@pytest.fixture
def directory(tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_gpt2, tmp_path / "model"))


def change_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: tensor.clone() for name, tensor in safetensors.open(directory).items()}
    change(weights)
    safetensors.save(directory / "model.safetensors", weights)


def logits(loaded: loading.Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(torch.arange(20)[None]).float()


def test_directory_and_file(tiny_gpt2: Path) -> None:
    whole, single = loading.load(tiny_gpt2), loading.load(str(tiny_gpt2 / "model.safetensors"))
    assert torch.equal(logits(whole), logits(single))
    assert (whole.dtype, whole.device, whole.path) == (torch.float32, torch.device("cpu"), tiny_gpt2)
    assert whole.config["n_layer"] == whole.model.config.n_layer == 2
    assert whole.name == str(tiny_gpt2)
    assert whole.tokenizer.decode(whole.tokenizer.encode("The sea")) == "The sea"
    assert not whole.model.training
    assert whole.sha256() == hashlib.sha256((tiny_gpt2 / "model.safetensors").read_bytes()).hexdigest()


def test_unpacked_model_trains_and_saves(tiny_gpt2: Path) -> None:
    """A gradient step does not reach the file behind the memory map."""
    loaded, before = loading.load(tiny_gpt2, pack=False), loading.sha256(tiny_gpt2)
    loaded.model(torch.arange(20)[None]).sum().backward()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter -= 0.1 * parameter.grad
    assert loading.sha256(tiny_gpt2) == before
    assert loaded.model.checkpoint().keys() == safetensors.open(tiny_gpt2).keys()


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "float16", torch.float16),
    ],
    ids=str,
)
def test_dtypes(directory: Path, stored: torch.dtype, asked: str, expected: torch.dtype) -> None:
    reference = logits(loading.load(directory))
    change_weights(directory, lambda weights: weights.update({k: w.to(stored) for k, w in weights.items()}))
    loaded = loading.load(directory, device="cpu", dtype=asked)
    assert loaded.dtype == loaded.model.wte.weight.dtype == expected
    assert (logits(loaded) - reference).abs().max() < 0.1 * reference.abs().max()


@kernels_only
def test_packed_weights_do_not_stay_in_memory_twice(tmp_path: Path) -> None:
    config = replace(TINY, n_embd=512, n_layer=2, n_head=8)
    plain = write_checkpoint(tmp_path, config)
    loaded = loading.load(tmp_path)
    file, resident, at = str(tmp_path / "model.safetensors"), 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            at = fields[-1]
        elif fields[0] == "Rss:" and at == file:
            resident += int(fields[1]) * 1024
    assert resident < Path(file).stat().st_size / 20
    with torch.inference_mode():
        torch.testing.assert_close(logits(loaded), plain(torch.arange(20)[None]), atol=1e-3, rtol=1e-3)


def test_progress_counts_every_byte(tiny_gpt2: Path) -> None:
    seen: list[tuple[int, int]] = []
    loading.load(tiny_gpt2, progress=lambda done, total: seen.append((done, total)))
    stored = sum(tensor.nbytes for tensor in safetensors.open(tiny_gpt2).values())
    assert seen == sorted(seen)
    assert seen[-1] == (stored, stored)


def test_imports_stay_light(tiny_gpt2: Path) -> None:
    """Each of these costs a good part of the time that a user waits for the first word."""
    heavy = ("transformers", "huggingface_hub.hf_api", "torch._dynamo", "torch._inductor", "sympy", "torch.distributed")
    before = "import sys, torch; before = set(sys.modules)"
    then = (
        f"from llmcli import loading; loading.load({str(tiny_gpt2)!r}, offline=True); "
        "from llmcli.training import optimizer; w = torch.ones(2); w.grad = torch.ones(2); "
        "optimizer.AdamW([w], 0.1).step([0], 0.1, 1.0)"
    )
    report = f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    done = subprocess.run([sys.executable, "-c", f"{before}; {then}; {report}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' in config.json is not supported; expected one of: bert"),
        ({"model_type": None}, "model_type None in config.json is not supported"),
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported"),
        ({"n_embd": 64}, "wte.weight has shape [320, 32]; config.json asks for [320, 64]"),
        ({"n_inner": 100}, "h.0.mlp.c_fc.weight has shape [128, 32]; config.json asks for [100, 32]"),
        ({"n_positions": 65}, "wpe.weight has shape [64, 32]; config.json asks for [65, 32]"),
        ({"vocab_size": 400}, "wte.weight has shape [320, 32]; config.json asks for [400, 32]"),
        ({"n_layer": 3}, "the tensor h.2.attn.c_attn.bias is missing (and 11 more)"),
        ({"n_layer": 1}, "the tensor h.1.attn.c_attn.bias has no place in this architecture (and 11 more)"),
        ({"n_embd": 10**9}, "config.json asks for tensors that no machine holds"),
        ({"n_positions": 10**30}, "config.json asks for tensors that no machine holds"),
        ({"n_layer": 10**9}, "config.json asks for 1000000000 layers; there are 28 tensors"),
        ({"tie_word_embeddings": False}, "the tensor lm_head.weight is missing"),
        ({"position_embedding_type": "sinusoidal"}, "the tensor wpe.weight has no place"),
    ],
    ids=str,
)
def test_a_config_that_lies(directory: Path, changes: dict[str, Any], message: str) -> None:
    change_config(directory, **changes)
    with pytest.raises(ModelError) as error:
        loading.load(directory)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model(directory: Path) -> None:
    write_tokenizer(directory, 321)
    with pytest.raises(ModelError, match=r"tokenizer has 321 entries, but vocab_size .* is 320: .* different"):
        loading.load(directory)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["wte.weight", "h.1.mlp.c_proj.weight", "ln_f.bias"])
def test_weights_that_are_not_finite(directory: Path, name: str, value: float) -> None:
    change_weights(directory, lambda weights: weights[f"transformer.{name}"].view(-1)[-3].fill_(value))
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinity; expected finite weights"):
        loading.load(directory)


def test_weights_too_large_for_the_precision(directory: Path) -> None:
    change_weights(directory, lambda weights: weights["transformer.wte.weight"].view(-1)[0].fill_(1e5))
    loading.load(directory)
    with pytest.raises(ModelError, match=r"wte\.weight holds numbers that torch\.float16 cannot: use --dtype float32"):
        loading.load(directory, dtype="float16")


def test_weights_that_are_no_numbers(directory: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"].int()

    change_weights(directory, change)
    with pytest.raises(ModelError, match=r"ln_f\.bias holds torch\.int32; expected floating-point weights"):
        loading.load(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b"\xff{}", "not readable as JSON"),
        pytest.param(b"[" * 100_000, "not readable as JSON", id="deep"),
    ],
)
def test_a_damaged_config(directory: Path, content: bytes, message: str) -> None:
    (directory / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        loading.load(directory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json: no such file; a model is config.json, "),
        ("model.safetensors", "expected model.safetensors or model.safetensors.index.json; found neither"),
        ("tokenizer.json", "expected tokenizer.json, or vocab.json and merges.txt; found neither"),
    ],
)
def test_a_missing_file(directory: Path, name: str, message: str) -> None:
    (directory / name).unlink()
    with pytest.raises(ModelError, match=message):
        loading.load(directory)


def test_truncated_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated or damaged"):
        loading.load(directory)


def test_pickles_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    for spec in (directory, directory / "pytorch_model.bin"):
        with pytest.raises(ModelError, match="can run any code"):
            loading.load(spec)


def test_devices(tiny_gpt2: Path) -> None:
    with pytest.raises(ResourceError, match=r"device cuda:99 is not available; this machine has \d+ CUDA devices"):
        loading.load(tiny_gpt2, device="cuda:99")
    with pytest.raises(InputError, match="device 'abacus' is not known; expected auto, cpu, cuda"):
        loading.load(tiny_gpt2, device="abacus")


@pytest.mark.parametrize(("text", "penalty"), [('{"repetition_penalty": 1.2, "temperature": 0.6}', 1.2), ("{}", 1.0)])
def test_advised_repetition_penalty(text: str, penalty: float, tiny_gpt2: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_gpt2, tmp_path / "model")
    (directory / "generation_config.json").write_text(text)
    assert loading.load(directory).repetition_penalty == penalty


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"repetition_penalty": -1}', '{"repetition_penalty": "much"}', pytest.param("[" * 100_000, id="deep")],
)
def test_bad_advice_is_refused(text: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_gpt2, tmp_path / "model")
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json: expected"):
        loading.load(directory)
