"""Tiny random checkpoints of every family, written by transformers itself, which is also the peer to compare with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmcli.checkpoints import safetensors
from llmcli.models import model_class
from tests.tiny import write_sentencepiece, write_tokenizer, write_wordpiece

SIZES: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 320, "d_model": 48, "d_kv": 16, "d_ff": 88, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "initializer_factor": 1.5,
    },
}  # fmt: skip
SIZES["mt5"] = SIZES["t5"]
SIZES["bert"] = {
    "vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 88,
    "max_position_embeddings": 130, "initializer_range": 0.25,
}  # fmt: skip
SIZES["roberta"] = {**SIZES["bert"], "type_vocab_size": 1, "pad_token_id": 1}

SIZES["gpt_neox"] = {
    "vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 88,
    "max_position_embeddings": 256, "initializer_range": 0.25, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
SIZES["opt"] = {
    "vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 88,
    "max_position_embeddings": 256, "word_embed_proj_dim": 48, "init_std": 0.25, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
SIZES["bloom"] = {
    "vocab_size": 320, "hidden_size": 48, "n_layer": 3, "n_head": 4, "initializer_range": 0.25, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip

SIZES["gpt2"] = {
    "vocab_size": 320, "n_positions": 256, "n_embd": 48, "n_layer": 3, "n_head": 3, "initializer_range": 0.25,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
SIZES["llama"] = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.25, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
SIZES |= {"mistral": SIZES["llama"], "qwen2": SIZES["llama"], "qwen3": {**SIZES["llama"], "head_dim": 16}}
SIZES["phi3"] = {**SIZES["llama"], "pad_token_id": 0}
SIZES["mixtral"] = {**SIZES["llama"], "num_local_experts": 4}
SIZES["gemma3_text"] = {
    **SIZES["llama"], "head_dim": 16, "query_pre_attn_scalar": 16, "pad_token_id": 0, "sliding_window": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
SIZES["gemma2"] = {
    **SIZES["gemma3_text"], "layer_types": None, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
}  # fmt: skip
SIZES["openai-gpt"] = {**SIZES["gpt2"], "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
SIZES["lstm"] = {"vocab_size": 320, "n_embd": 48, "n_layer": 2, "initializer_range": 0.25}
SIZES |= {"camembert": SIZES["roberta"], "xlm-roberta": SIZES["roberta"]}


@dataclass(frozen=True)
class Case:
    """A model_type, and what its config.json says beyond SIZES."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.model_type} {self.config or ''}".strip()


def write(directory: Path, case: Case) -> Any:
    """Save a random model with a tokenizer of its kind; biases and norms differ from zeros and ones.

    None for a family that transformers does not have.
    """
    if case.model_type == "lstm":
        model = model_class("lstm")(model_class("lstm").Config.from_dict(SIZES["lstm"]))
        model.initialize(torch.Generator().manual_seed(7))
        (directory / "config.json").write_text(json.dumps(model.config.describe()))
        safetensors.save(directory / "model.safetensors", model.checkpoint())
        write_tokenizer(directory)
        return None
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(case.model_type, **{**SIZES[case.model_type], **case.config})
    if case.model_type in ("t5", "mt5"):
        auto, tokenizer = transformers.AutoModelForSeq2SeqLM, write_sentencepiece
    elif case.model_type in ("bert", "roberta", "camembert", "xlm-roberta"):
        auto, tokenizer = transformers.AutoModelForMaskedLM, write_wordpiece
    else:
        auto, tokenizer = transformers.AutoModelForCausalLM, write_tokenizer
    peer = auto.from_config(config)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
            else:  # the row of a padding token, which no scale could bring to 8 bits
                parameter[~parameter.any(-1)] = 0.1
    peer.eval().save_pretrained(directory)
    tokenizer(directory)
    return peer


def prompt(rows: int, length: int) -> torch.Tensor:
    """Ids (rows, length), none of them special."""
    return torch.randint(5, 320, (rows, length), generator=torch.Generator().manual_seed(3))


def range_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the range of what is expected."""
    return float((got - expected).abs().max() / (expected.max() - expected.min()))
