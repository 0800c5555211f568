"""Reading a `config.json` strictly: refuse what changes the arithmetic and is not implemented, check every value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from llmcli.errors import ModelError

T = TypeVar("T")
TokenId = int  # 0 is one


# What changes the arithmetic of some family of Hugging Face's, with the values, besides null, that turn it off. Who
# computes it has a field of that name.
FOREIGN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "quantization_config"), ()),
    **dict.fromkeys(("query_pre_attn_scalar", "attention_multiplier", "rope_local_base_freq", "rope_scaling"), ()),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier"), (1,)),
    **dict.fromkeys(("scale_emb", "scale_depth", "mscale", "rotary_pct"), (1,)),
    **dict.fromkeys(("sliding_window", "attention_window", "attention_chunk_size", "attention_types"), ()),
    **dict.fromkeys(("rotary_dim", "rotary_emb_base", "no_rope_layers", "no_rope_layer_interval"), ()),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), (0, 1)),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "num_kv_shared_layers"), (0,)),
    **dict.fromkeys(("alibi", "multi_query", "parallel_attn", "new_decoder_architecture"), (False,)),
    **dict.fromkeys(("use_parallel_residual", "qk_layernorm", "use_qk_norm", "attn_temperature_tuning"), (False,)),
    **dict.fromkeys(("use_bidirectional_attention", "add_cross_attention", "rope_interleaved"), (False,)),
    **dict.fromkeys(("scale_attn_by_inverse_layer_idx", "scale_embedding", "use_mup"), (False,)),
    "scale_attn_weights": (True,),
    "pruned_heads": ({},),
}


def refuse(config: Mapping[str, Any], off: Mapping[str, Any]) -> None:
    """Raise ModelError for a key with another value than the one that turns it off (null is off, too)."""
    for key, value in off.items():
        if config.get(key, value) not in (value, None):
            raise ModelError(
                f"config.json: {key} = {config[key]!r} is not supported; expected {value!r} or no such key"
            )


def choose(config: Mapping[str, Any], key: str, default: Any, known: Collection[Any]) -> Any:
    """The value of a key, one of those known. Raises ModelError for another."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str | int | float | bool) or value not in known:
        raise ModelError(
            f"config.json: {key} {value!r} is not supported; expected one of: {', '.join(map(str, known))}"
        )
    return value


def read(cls: type[T], config: Mapping[str, Any]) -> T:
    """A dataclass of the keys of a `config.json`. Keys that it has no field for are ignored, but not those of FOREIGN.

    Raises ModelError.
    """
    chosen = {field.name: config[field.name] for field in fields(cls) if field.name in config}  # type: ignore[arg-type]
    for key, off in FOREIGN.items():
        if key not in chosen and config.get(key) not in (None, *off):
            expected = f"{off[0]!r} or no such key" if off else "no such key"
            raise ModelError(f"config.json: {key} = {config[key]!r} is not supported; expected {expected}"[:300])
    for field in fields(cls):  # type: ignore[arg-type]
        value = chosen.get(field.name, field.default)
        if not fits(str(field.type), value):
            got = repr(chosen[field.name]) if field.name in chosen else "missing"
            raise ModelError(f"config.json: {field.name} = {got}; expected {field.type}, positive and finite")
    return cls(**chosen)


def fits(kind: str, value: Any) -> bool:
    """Whether a JSON value fits the annotation of a field (true is no number, and sizes are positive)."""
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind.startswith("float"):
        return (value is None and kind.endswith("None")) or (
            isinstance(value, int | float) and math.isfinite(value) and value >= 0
        )
    if kind == "str":
        return isinstance(value, str)
    if kind == "TokenId":
        return isinstance(value, int) and value >= 0
    if kind.startswith("tuple"):
        return isinstance(value, tuple)
    return (value is None and kind == "int | None") or (isinstance(value, int) and value > 0)
