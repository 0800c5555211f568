"""Families of decoders beside transformers: logits, greedy text, steps, batches, gradients, configurations."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmcli import loading
from llmcli.errors import ModelError
from llmcli.generation.loop import Request, generate
from llmcli.models import MODELS, model_class
from llmcli.nn.config import FOREIGN
from llmcli.nn.decoder import DecoderStack
from llmcli.ops import argmax, registry
from tests.marks import kernels_only
from tests.models.families import SIZES, Case, prompt, range_error, write

CASES = [
    Case("gpt_neox"),
    Case("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    Case("gpt_neox", {"tie_word_embeddings": True, "attention_bias": False, "rope_parameters":
         {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}}),
    Case("opt"),
    Case("opt", {"activation_function": "gelu", "tie_word_embeddings": False}),
    Case("bloom"),
    Case("bloom", {"n_head": 6, "layer_norm_epsilon": 0.1}),
    Case("phi3"),
    Case("phi3", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    Case("mixtral"),
    Case("mixtral", {"num_experts_per_tok": 1, "num_key_value_heads": 6}),
    Case("openai-gpt"),
    Case("openai-gpt", {"afn": "relu"}),
    Case("gemma3_text"),
    Case("gemma3_text", {"sliding_window": 7, "query_pre_attn_scalar": 24, "layer_types": None, "rope_parameters": {
         "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
         "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}}}),
    Case("gemma2"),
    Case("gemma2", {"sliding_window": 7, "query_pre_attn_scalar": 24, "final_logit_softcapping": None,
         "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 300.0}}),
    Case("mistral", {"sliding_window": 20}),
    Case("mixtral", {"sliding_window": 7}),
    Case("phi3", {"sliding_window": 38}),
]  # fmt: skip
OURS = {f"llmcli::{name}" for name in ("attention", "cached_attention", "decoder")}
TORCHS = {
    f"aten::{name}" for name in (
        "mm", "bmm", "addmm", "matmul", "einsum", "linear", "softmax", "_softmax", "_log_softmax", "logsumexp", "lstm",
        "gru", "scaled_dot_product_attention", "native_layer_norm", "rms_norm", "gelu", "silu", "tanh",
    )
}  # fmt: skip
by_case = pytest.mark.parametrize("case", CASES, ids=str)


@by_case
@torch.inference_mode()
def test_logits_and_greedy_text_of_64_tokens(tmp_path: Path, case: Case) -> None:
    peer, ids = write(tmp_path, case), prompt(2, 250)
    loaded = loading.load(tmp_path, dtype="float32")
    assert range_error(loaded.model(ids), peer(ids).logits) < 1e-4
    request = Request(ids=ids[0, :20].tolist(), max_tokens=64)
    events = generate(loaded.model, [request], loaded.tokenizer, context=256, device=loaded.device)
    got = [event.token for event in events if event.token is not None]
    expected = peer.generate(ids[:1, :20], max_new_tokens=64, do_sample=False, pad_token_id=0)[0, 20:].tolist()
    assert got == expected[: len(got)]
    assert len(got) == len(expected) or expected[len(got)] == 0
    # Many a random model says the same for ever: once more with no token twice.
    expected = peer.generate(
        ids[:1, :20], max_new_tokens=64, min_new_tokens=64, do_sample=False, no_repeat_ngram_size=1, pad_token_id=0
    )
    logits, state = loaded.model.start(ids[:1, :20], capacity=84)
    got = ids[0, :20].tolist()
    for _ in range(64):
        logits[:, [0, *got]] = -torch.inf
        got.append(int(logits.argmax()))
        logits = loaded.model.step(torch.tensor([got[-1:]]), state)
    assert got == expected[0].tolist()


@kernels_only
@pytest.mark.parametrize(("dtype", "quantize"), [("float32", None), ("bfloat16", None), ("bfloat16", "int8")])
@pytest.mark.parametrize("case", [*CASES[:3], *CASES[5:7]], ids=str)
@torch.inference_mode()
def test_one_operator_has_the_bits_of_one_after_the_other(
    tmp_path: Path, case: Case, dtype: str, quantize: str | None
) -> None:
    write(tmp_path, case)
    model = loading.load(tmp_path, dtype=dtype, quantize=quantize).model
    ids, lengths = prompt(3, 140), torch.tensor([5, 131, 17])

    def everything() -> list[torch.Tensor]:
        logits, state = model.start(ids, lengths, capacity=150)
        return [logits, model.step(ids[:, :1], state), model.step(ids[:, 1:6], state), model(ids)]

    assert model._stack is not None
    together = everything()
    model._stack = None
    assert all(torch.equal(a, b) for a, b in zip(everything(), together, strict=True))


@pytest.mark.parametrize(("dtype", "quantize"), [("float32", None), ("bfloat16", None), ("float32", "int8")])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5], Case("gpt2"), Case("llama")], ids=str)
@torch.inference_mode()
def test_the_likeliest_token_is_that_of_the_logits(
    tmp_path: Path, case: Case, dtype: str, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row and in a batch, with a screened head and without, also where a screen leaves out too little."""
    monkeypatch.setattr(DecoderStack, "SCREENED", 0)
    monkeypatch.setattr(DecoderStack, "PAUSE", 5)
    write(tmp_path, case)
    model = loading.load(tmp_path, dtype=dtype, quantize=quantize).model
    ids = prompt(3, 30)
    (logits, state), (_, beside) = (model.start(ids, capacity=60) for _ in range(2))
    tokens = argmax(logits[:, :300])[0]
    for n in range(20):
        limit = 300 if n % 2 else 330  # of 320: a tokenizer may have more
        expected, highest = argmax(model.step(tokens[:, None], beside)[:, :limit])
        got, its = model.likeliest(tokens[:, None], state, limit)
        assert torch.equal(got, expected)
        assert torch.equal(its, highest)
        tokens = expected
    if registry.kernels is not None and case.model_type in ("gpt_neox", "bloom", "gpt2"):
        assert (model._stack._screen is None) == (quantize is not None)


@pytest.mark.parametrize(
    ("dtype", "quantize"), [("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("float32", "int4")]
)
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[6], CASES[7], CASES[9], CASES[11], *CASES[13::2]], ids=str)
@torch.inference_mode()
def test_prefill_is_steps_and_a_batch_is_its_rows(tmp_path: Path, case: Case, dtype: str, quantize: str | None) -> None:
    write(tmp_path, case)
    model = loading.load(tmp_path, dtype=dtype, quantize=quantize).model
    ids, lengths = prompt(3, 40), torch.tensor([40, 17, 1])
    loose = partial(torch.allclose, atol=0.5 if dtype == "bfloat16" else 1e-3)
    same = torch.equal if registry.kernels is not None else loose
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


@kernels_only
@pytest.mark.parametrize("family", sorted(MODELS))
@torch.inference_mode()
def test_our_kernels_serve_every_family_in_every_precision(tmp_path: Path, family: str) -> None:
    """No product, softmax, norm or attention of torch's own: prompts, steps, scores."""
    write(tmp_path, Case(family))
    ids = prompt(2, 40)
    for dtype, quantize in (("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("float32", "int4")):
        model = loading.load(tmp_path, dtype=dtype, quantize=quantize, kinds=tuple(loading.USES)).model
        with torch.autograd.profiler.profile() as profile:
            if model.KIND == "encoder":
                logits = model.fill(model.encode(ids, torch.tensor([40, 17])))
            else:
                state = model.start(ids, torch.tensor([40, 17]), capacity=60)[1]
                logits = model.step(ids[:, :3], state)
            if model.KIND == "decoder":
                model.logprobs(ids)
        assert logits.isfinite().all()
        ran = {event.name for event in profile.function_events}
        assert not ran & TORCHS, (dtype, quantize)
        assert ran & OURS or family == "lstm"


@by_case
def test_gradients_checkpoint_and_description(tmp_path: Path, case: Case) -> None:
    peer = write(tmp_path, case)
    model, ids = loading.load(tmp_path, dtype="float32", pack=False).model.train(), prompt(2, 30)
    model(ids).logsumexp(-1).sum().backward()
    peer(ids).logits.logsumexp(-1).sum().backward()
    saved, expected = model.checkpoint(), load_file(tmp_path / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    for parameter in (*model.parameters(), *peer.parameters()):  # gradients in a checkpoint's names and layouts
        parameter.data = parameter.grad
    peer.save_pretrained(tmp_path / "gradients")
    ours = model.checkpoint()
    for name, gradient in load_file(tmp_path / "gradients" / "model.safetensors").items():
        scale = max(0.1, float(gradient.abs().max()))  # a bias of keys changes nothing
        torch.testing.assert_close(ours[name], gradient, atol=2e-4 * scale, rtol=2e-3)
    config = type(model.config).from_dict(json.loads(json.dumps(model.config.describe())))
    assert config == model.config
    one, two = (type(model)(config).initialize(torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("gpt_neox", {"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ("gpt_neox", {"rotary_pct": 0.1}, "an even number"),
        ("gpt_neox", {"rotary_emb_base": 0.0}, "rotary_emb_base = 0"),
        ("gpt_neox", {"num_attention_heads": 5}, "expected a multiple"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
        ("opt", {"word_embed_proj_dim": 24}, "word_embed_proj_dim = 24"),
        ("opt", {"activation_function": "silu"}, "activation_function 'silu'"),
        ("opt", {"num_attention_heads": 5}, "expected a multiple"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("bloom", {"n_head": 5}, "expected a multiple"),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor = 0.75 is not supported"),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok = 5; expected at most num_local_experts = 4"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts = 0"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping = 0; expected a positive number"),
        ("gemma2", {"final_logit_softcapping": -3.0}, "final_logit_softcapping = -3.0"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3_text", {"layer_types": ["chunked"] * 3}, "layer_types"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation = 'silu' is not supported"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope_type = 'yarn'"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        ("openai-gpt", {"afn": "elu"}, "afn 'elu' is not supported; expected one of: gelu, relu, silu, swish"),
        ("openai-gpt", {"n_head": 5}, "is not a multiple of n_head 5"),
        ("bloom", {"hidden_size": None}, "hidden_size = missing"),
    ],
    ids=str,
)
def test_config_refuses(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_class(family).Config.from_dict({**SIZES[family], **change})


@pytest.mark.parametrize("family", sorted(MODELS))
def test_what_other_families_compute_is_refused(family: str) -> None:
    kind, plain = model_class(family).Config, {**SIZES[family], "model_type": family}
    own = {"sliding_window", *(field.name for field in fields(kind))}  # a Llama without windows ends there
    for key in FOREIGN.keys() - own:
        with pytest.raises(ModelError, match=f"{key} = 7 is not supported; expected .*no such key"):
            kind.from_dict({**plain, key: 7})
        for off in (None, *FOREIGN[key]):
            assert kind.from_dict({**plain, key: off}) == kind.from_dict(plain)
    assert len(FOREIGN.keys() - own) > 20
