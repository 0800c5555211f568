"""GGUF files of tiny models, written by the ggml project's own package with its own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from safetensors.torch import load_file

ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ARCHITECTURES |= {
    "mixtral": "llama",
    "gpt_neox": "gptneox",
    "bloom": "bloom",
    "phi3": "phi3",
    "gemma3_text": "gemma3",
    "gemma2": "gemma2",
}
NORMAL, CONTROL, UNUSED = 1, 3, 5
CHAT = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"


def write(directory: Path, target: Path, *, padding: int = 0) -> None:
    """A checkpoint in a directory, with its byte-level tokenizer → a GGUF file of float32, as llama.cpp's converter."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    name = ARCHITECTURES[config["model_type"]]
    heads = config.get("num_attention_heads", config.get("n_head"))
    kv_heads = config.get("num_key_value_heads", heads)
    width = config.get("hidden_size", config.get("n_embd"))
    n_layers = config.get("num_hidden_layers", config.get("n_layer"))
    head_dim = config.get("head_dim") or width // heads
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope = rope.get("full_attention", rope)
    file = GGUFWriter(target, name)
    file.add_context_length(config.get("max_position_embeddings", config.get("n_positions", 2048)))
    file.add_embedding_length(width)
    file.add_block_count(n_layers)
    file.add_feed_forward_length(config.get("intermediate_size") or 4 * width)
    file.add_head_count(heads)
    file.add_head_count_kv(kv_heads)
    if "rms_norm_eps" in config:
        file.add_layer_norm_rms_eps(config["rms_norm_eps"])
        file.add_rope_freq_base(rope.get("rope_theta", 10000.0))
        file.add_key_length(head_dim)
        file.add_value_length(head_dim)
        file.add_rope_dimension_count(head_dim)
    else:
        file.add_layer_norm_eps(config.get("layer_norm_eps", config.get("layer_norm_epsilon", 1e-5)))
    if config.get("sliding_window"):
        file.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "mixtral":
        file.add_expert_count(config["num_local_experts"])
        file.add_expert_used_count(config["num_experts_per_tok"])
    if name == "gemma2":
        file.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        file.add_final_logit_softcapping(config["final_logit_softcapping"])
    if name == "gptneox":
        file.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 0.25)))
        file.add_rope_freq_base(rope.get("rope_theta", 10000.0))
        file.add_parallel_residual(config["use_parallel_residual"])
    if rope.get("rope_type") == "linear":
        file.add_string(f"{name}.rope.scaling.type", "linear")
        file.add_float32(f"{name}.rope.scaling.factor", rope["factor"])
    if rope.get("rope_type") == "llama3":
        file.add_tensor("rope_freqs.weight", divisors(rope, head_dim))
    write_vocabulary(file, directory, padding)
    arch = next(arch for arch, known in MODEL_ARCH_NAMES.items() if known == name)
    names = get_tensor_name_map(MODEL_ARCH(arch), n_layers)
    stored = load_file(directory / "model.safetensors")
    for first in [name for name in stored if ".experts.0." in name]:
        each = (first.replace(".experts.0.", f".experts.{n}.") for n in range(config["num_local_experts"]))
        stored[first.replace(".experts.0.", ".experts.")] = torch.stack([stored.pop(name) for name in each])
    for theirs, tensor in stored.items():
        data = tensor.float().numpy()
        if theirs.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            data = data.T
        if theirs.endswith(("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")) and name == "llama":
            n = heads if "q_proj" in theirs else kv_heads
            data = data.reshape(n, 2, len(data) // n // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        if theirs.endswith("norm.weight") and name.startswith("gemma"):
            data = data + 1
        if "query_key_value" in theirs:
            data = data.reshape(heads, 3, width // heads, *data.shape[1:])
            data = np.concatenate([data[:, n].reshape(-1, *data.shape[3:]) for n in range(3)])
        short = theirs.removeprefix("transformer.") if name == "bloom" else theirs
        ours = names.get_name(short, try_suffixes=(".weight", ".bias"))
        if padding and ours in ("token_embd.weight", "output.weight"):
            data = np.concatenate([data, np.zeros((padding, data.shape[1]), np.float32)])
        file.add_tensor(ours, np.ascontiguousarray(data))
    finish(file)


def write_vocabulary(file: GGUFWriter, directory: Path, padding: int = 0) -> None:
    """The tokenizer.json of a directory, byte-level as GPT-2's; id 0 ends a text."""
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get) + [f"[PAD{n}]" for n in range(padding)]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(tokens)
    file.add_token_types([CONTROL] + [NORMAL] * (len(tokens) - padding - 1) + [UNUSED] * padding)
    file.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    file.add_bos_token_id(0)
    file.add_eos_token_id(0)
    file.add_chat_template(CHAT)


def divisors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """What Llama 3.1 divides each rate by, as llama.cpp's converter computes it."""
    low, high, context = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    result = []
    for rate in 1 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2) / head_dim):
        length = 2 * torch.pi / rate
        smooth = (context / length - low) / (high - low)
        middle = 1 / ((1 - smooth) / rope["factor"] + smooth)
        result.append(1.0 if length < context / high else rope["factor"] if length > context / low else middle)
    return np.array(result, np.float32)


def finish(file: GGUFWriter) -> None:
    """Write what was added."""
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
