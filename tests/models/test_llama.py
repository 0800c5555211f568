"""Llama, Mistral, Qwen2 and Qwen3 beside transformers, on random checkpoints that transformers itself wrote."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading
from llmcli.errors import ModelError
from llmcli.generation.loop import Request, generate
from llmcli.models.llama import Llama, LlamaConfig
from llmcli.ops import registry
from tests.marks import kernels_only
from tests.tiny import write_tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.25, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 6}),
    ("Llama", {"head_dim": 10, "rms_norm_eps": 0.1}),
    ("Llama", {"rope_parameters": {"rope_theta": 500.0, **LLAMA3}}),
    ("Llama", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}}),
    ("Mistral", {"sliding_window": None}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 16}),
]
by_family = pytest.mark.parametrize(("family", "config"), FAMILIES, ids=str)


def write(directory: Path, family: str, **config: Any) -> Any:
    """Save a random model of the family with our tokenizer; biases and norms differ from zeros and ones."""
    torch.manual_seed(7)
    kind = getattr(transformers, f"{family}Config")(**{**SIZES, **config})
    peer = getattr(transformers, f"{family}ForCausalLM")(kind)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    peer.eval().save_pretrained(directory)
    write_tokenizer(directory, 320)
    return peer


def prompt(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 320, (rows, length), generator=torch.Generator().manual_seed(3))


@by_family
@torch.inference_mode()
def test_logits(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    peer = write(tmp_path, family, **config)
    ids = prompt(2, 256)
    expected = peer(ids).logits
    got = loading.load(tmp_path, dtype="float32").model(ids)
    assert (got - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


@by_family
@torch.inference_mode()
def test_greedy_text_of_64_tokens(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    peer = write(tmp_path, family, **config)
    ids = prompt(1, 20)
    expected = peer.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)[0, 20:].tolist()
    loaded = loading.load(tmp_path)
    request = Request(ids=ids[0].tolist(), max_tokens=64)
    events = generate(loaded.model, [request], loaded.tokenizer, context=256, device=loaded.device)
    got = [event.token for event in events if event.token is not None]
    assert got == expected[: len(got)]
    assert len(got) == len(expected) or expected[len(got)] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@by_family
@torch.inference_mode()
def test_prefill_is_steps_and_a_batch_is_its_rows(
    tmp_path: Path, family: str, config: dict[str, Any], dtype: str
) -> None:
    write(tmp_path, family, **config)
    loaded = loading.load(tmp_path, dtype=dtype)
    model, ids, lengths = loaded.model, prompt(3, 40), torch.tensor([40, 17, 1])
    same = (
        torch.equal
        if registry.kernels is not None
        else partial(torch.allclose, atol=0.2 if dtype == "bfloat16" else 1e-4)
    )
    together, state = model.start(ids, lengths, capacity=48)
    after, ahead = model.step(ids[:, :2], state), model.extend(ids[:, 2:5], state)
    for row, length in enumerate(lengths.tolist()):
        alone, one = model.start(ids[row : row + 1, :1], capacity=48)
        for t in range(1, length):
            alone = model.step(ids[row : row + 1, t : t + 1], one)
        assert same(alone[0], together[row])
        assert same(model.step(ids[row : row + 1, :2], one)[0], after[row])
        for t in range(2, 5):
            assert same(model.step(ids[row : row + 1, t : t + 1], one)[0], ahead[row, t - 2])


def test_training_gradients_and_checkpoint(tmp_path: Path) -> None:
    peer = write(tmp_path, "Qwen2")
    model = loading.load(tmp_path, dtype="float32", pack=False).model.train()
    ids = prompt(2, 32)
    model(ids).logsumexp(-1).mean().backward()
    peer(ids).logits.logsumexp(-1).mean().backward()
    for name, parameter in peer.named_parameters():
        ours = dict(model.named_parameters())[name.removeprefix("model.")]
        torch.testing.assert_close(ours.grad, parameter.grad, atol=1e-5, rtol=1e-3, msg=name)
    saved, expected = model.checkpoint(), peer.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


@by_family
def test_config_survives_being_described(family: str, config: dict[str, Any]) -> None:
    kind = getattr(transformers, f"{family}Config")(**{**SIZES, **config})
    parsed = LlamaConfig.from_dict(kind.to_dict())
    assert LlamaConfig.from_dict(json.loads(json.dumps(parsed.describe()))) == parsed


def test_windows_of_a_family() -> None:
    """null is none, silence is the family's own; where only some layers have it, it ends the context."""
    for given, window in ({"sliding_window": 100}, 100), ({"sliding_window": None}, None), ({}, 4096):
        config = LlamaConfig.from_dict({"model_type": "mistral", **SIZES, **given})
        assert (config.n_positions, config.sliding_window) == (256, window)
        assert LlamaConfig.from_dict(json.loads(json.dumps(config.describe()))) == config
    for used, context in ((False, 256), (True, 100)):
        config = transformers.Qwen2Config(**{**SIZES, "sliding_window": 100, "use_sliding_window": used}).to_dict()
        assert LlamaConfig.from_dict({**config, "sliding_window": 100}).n_positions == context


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({"num_key_value_heads": 4}, "expected a multiple"),
        ({"head_dim": 7}, "even size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"rope_theta": -1.0}, "rope_theta"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LlamaConfig.from_dict({**SIZES, **change})


def test_initialize_is_reproducible() -> None:
    config = LlamaConfig.from_dict(SIZES)
    one, two = (Llama(config).initialize(torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.tokens.std().item() == pytest.approx(0.25, rel=0.1)


@kernels_only
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config", [{}, {"num_key_value_heads": 1, "qkv_bias": True}, {"sliding_window": 12}, {"head_dim": 16}], ids=str
)
def test_short_steps_are_one_operator_with_the_same_bits(config: dict[str, Any], dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    kind = LlamaConfig(
        **{"model_type": "llama", **sizes, "vocab_size": 320, "num_key_value_heads": 2, "head_dim": 64, **config}
    )
    model = Llama(kind).initialize(torch.Generator().manual_seed(0)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a bias that is forgotten
            parameter.copy_(torch.linspace(-1, 1, len(parameter)))
    model.to(dtype).pack()
    assert (model._stack is None) == (kind.head_dim < 64)  # 2 heads of 16 do not fill a panel of 64
    ids = prompt(3, 40)
    logits = model(ids)
    lengths = torch.tensor([5, 31, 17])
    got, state = model.start(ids, lengths)
    assert torch.equal(got, logits[torch.arange(3), lengths - 1])
    for n in (1, 4):
        several = torch.stack([ids[row, end : end + n] for row, end in enumerate(lengths.tolist())])
        lengths += n
        assert torch.equal(model.step(several, state), logits[torch.arange(3), lengths - 1])
