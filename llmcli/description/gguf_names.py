"""What GGUF files call a model's sizes and tensors, and how they lay them out: one entry for each architecture.

Names and layouts are those of llama.cpp's converter (convert_hf_to_gguf.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the configuration needs no torch
    from torch import Tensor

    Layout = Callable[[Tensor, int], Tensor]  # a tensor and the heads in its rows


@dataclass(frozen=True)
class Architecture:
    """How GGUF's names relate to those of Hugging Face.

    `keys` are of config.json, each with its name in the metadata; `tensors` are names without their last part, those of
    a block with {} for its number, those of its experts with * for theirs; `layouts` are (to Hugging Face, from it),
    given the heads of that tensor.
    """

    model_type: str
    keys: Mapping[str, str]
    tensors: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    layouts: Mapping[str, tuple[Layout, Layout]] = field(default_factory=dict)


def turned(tensor: Tensor, heads: int) -> Tensor:
    """GPT-2's matrices, (in, out) on one side and (out, in) on the other."""
    return tensor.t() if tensor.dim() == 2 else tensor


def halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from neighbouring pairs to the first and the second half, as Hugging Face rotates them."""
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def pairs(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `halves`."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def less_one(tensor: Tensor, heads: int) -> Tensor:
    """Scales of Gemma's norms, which Hugging Face keeps as their distance from 1."""
    return tensor.float() - 1


def plus_one(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `less_one`."""
    return tensor.float() + 1


def by_head(tensor: Tensor, heads: int) -> Tensor:
    """Rows of all queries, all keys, all values → query, key and value of each head in turn."""
    return tensor.reshape(3, heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def by_kind(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `by_head`."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


LLAMA_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
LLAMA_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
GEMMA_TENSORS = {
    **LLAMA_TENSORS,
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
GEMMA_NORMS = (
    "output_norm",
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_norm",
    "post_attention_norm",
    "post_ffw_norm",
)

ARCHITECTURES = {
    "gpt2": Architecture(
        "gpt2",
        {
            "n_positions": "context_length",
            "n_embd": "embedding_length",
            "n_inner": "feed_forward_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "attn_norm": "transformer.h.{}.ln_1",
            "attn_qkv": "transformer.h.{}.attn.c_attn",
            "attn_output": "transformer.h.{}.attn.c_proj",
            "ffn_norm": "transformer.h.{}.ln_2",
            "ffn_up": "transformer.h.{}.mlp.c_fc",
            "ffn_down": "transformer.h.{}.mlp.c_proj",
        },
        {"activation_function": "gelu_new"},
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), (turned, turned)),
    ),
    "llama": Architecture(
        "llama",
        LLAMA_KEYS,
        LLAMA_TENSORS,
        {"hidden_act": "silu"},
        layouts={"attn_q": (halves, pairs), "attn_k": (halves, pairs)},
    ),
    "qwen2": Architecture("qwen2", LLAMA_KEYS, LLAMA_TENSORS, {"hidden_act": "silu"}),
    "qwen3": Architecture("qwen3", LLAMA_KEYS, LLAMA_TENSORS, {"hidden_act": "silu"}),
    "gemma3": Architecture(
        "gemma3_text",
        {**LLAMA_KEYS, "sliding_window": "attention.sliding_window"},
        GEMMA_TENSORS,
        {"hidden_activation": "gelu_pytorch_tanh"},
        dict.fromkeys(GEMMA_NORMS, (less_one, plus_one)),
    ),
    "gemma2": Architecture(
        "gemma2",
        {
            **LLAMA_KEYS,
            "sliding_window": "attention.sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        GEMMA_TENSORS,
        {"hidden_activation": "gelu_pytorch_tanh"},
        dict.fromkeys(GEMMA_NORMS, (less_one, plus_one)),
    ),
    "phi3": Architecture(
        "phi3",
        LLAMA_KEYS,
        {
            **{name: theirs for name, theirs in LLAMA_TENSORS.items() if name not in ("attn_q", "attn_k", "attn_v")},
            "attn_qkv": "model.layers.{}.self_attn.qkv_proj",
            "ffn_up": "model.layers.{}.mlp.gate_up_proj",
        },
        {"hidden_act": "silu"},
    ),
    "gptneox": Architecture(
        "gpt_neox",
        {
            "max_position_embeddings": "context_length",
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "rotary_emb_base": "rope.freq_base",
            "use_parallel_residual": "use_parallel_residual",
        },
        {
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
            "attn_norm": "gpt_neox.layers.{}.input_layernorm",
            "attn_qkv": "gpt_neox.layers.{}.attention.query_key_value",
            "attn_output": "gpt_neox.layers.{}.attention.dense",
            "ffn_norm": "gpt_neox.layers.{}.post_attention_layernorm",
            "ffn_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
            "ffn_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        },
        {"hidden_act": "gelu"},
        {"attn_qkv": (by_head, by_kind)},
    ),
    "bloom": Architecture(
        "bloom",
        {
            "seq_length": "context_length",
            "hidden_size": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        {
            "token_embd": "transformer.word_embeddings",
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "attn_norm": "transformer.h.{}.input_layernorm",
            "attn_qkv": "transformer.h.{}.self_attention.query_key_value",
            "attn_output": "transformer.h.{}.self_attention.dense",
            "ffn_norm": "transformer.h.{}.post_attention_layernorm",
            "ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
            "ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
        },
        layouts={"attn_qkv": (by_head, by_kind)},
    ),
}
# What they are in files that count experts, whose matrices lie one behind the other in one tensor: * is their number.
WITH_EXPERTS = {
    "llama": Architecture(
        "mixtral",
        {**LLAMA_KEYS, "num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        {
            **{name: theirs for name, theirs in LLAMA_TENSORS.items() if ".mlp." not in theirs},
            "ffn_gate_inp": "model.layers.{}.block_sparse_moe.gate",
            "ffn_gate_exps": "model.layers.{}.block_sparse_moe.experts.*.w1",
            "ffn_down_exps": "model.layers.{}.block_sparse_moe.experts.*.w2",
            "ffn_up_exps": "model.layers.{}.block_sparse_moe.experts.*.w3",
        },
        ARCHITECTURES["llama"].constants,
        ARCHITECTURES["llama"].layouts,
    ),
}
# Where a file may be silent, as llama.cpp has it.
DEFAULTS = {"rope.freq_base": 10000.0, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# Metadata that changes the arithmetic in ways that the models here do not have, with the value that turns it off.
REFUSED = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.scale": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}
