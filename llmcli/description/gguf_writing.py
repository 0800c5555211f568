"""A model and its tokenizer as the metadata and the tensors of a GGUF file: the inverse of reading one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from llmcli.checkpoints import gguf
from llmcli.description.gguf_model import EMBEDDING, SCALING
from llmcli.description.gguf_names import ARCHITECTURES, WITH_EXPERTS, Architecture
from llmcli.description.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    PATTERNS,
    PREFIX,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    words,
)  # fmt: skip
from llmcli.errors import InputError
from llmcli.tokenizer import BYTE_PIECE, Tokenizer

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type
FINER = {"Q4_0": "Q8_0"}  # what the embedding, which is the head of many models, has instead


def architecture(model_type: str) -> tuple[str, Architecture]:
    """GGUF's name and table for a model_type. Raises InputError where there is none."""
    wanted = "llama" if model_type == "mistral" else model_type
    every = [*ARCHITECTURES.items(), *WITH_EXPERTS.items()]
    for name, known in every:
        if known.model_type == wanted:
            return name, known
    expected = ", ".join(sorted(["mistral", *(known.model_type for _, known in every)]))
    raise InputError(f"{model_type} models cannot be written as GGUF; expected one of: {expected}")


def metadata(model: Any, model_type: str, name: str, kind: str) -> dict[str, Any]:
    """What the file says of the model's sizes, and of the type of most of its weights."""
    (arch, known), config = architecture(model_type), model.config
    found: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        f"{arch}.vocab_size": config.vocab_size,
    }
    for ours, theirs in known.keys.items():
        value = getattr(config, ours)
        found |= {} if value is None else {f"{arch}.{theirs}": value}
    found.setdefault(f"{arch}.feed_forward_length", 4 * config.n_embd)  # GPT-2's n_inner may be left out
    if "rope_theta" in known.keys:
        found |= {f"{arch}.attention.value_length": config.head_dim, f"{arch}.rope.dimension_count": config.head_dim}
        scaling = dict(config.rope_scaling)
        if scaling.get("rope_type") == "linear":
            found |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": scaling["factor"]}
    window = None if "sliding_window" in known.keys else getattr(config, "sliding_window", None)
    if window is not None and arch == "phi3":
        found["phi3.attention.sliding_window"] = window
    elif window is not None:  # which nobody reads of this architecture: the context ends where it would hide keys
        found[f"{arch}.context_length"] = min(window, config.n_positions)
    if model_type == "gpt_neox":
        found[f"{arch}.rope.dimension_count"] = config.n_rotated
    return found


def tensors(model: Any, model_type: str, kind: str) -> dict[str, tuple[Tensor, str]]:
    """The parameters under GGUF's names, in its layouts, each with its type; vectors, positions, routers stay F32."""
    known, config = architecture(model_type)[1], model.config
    blocks = {theirs: ours for ours, theirs in known.tensors.items()}
    found: dict[str, tuple[Tensor, str]] = {}
    experts: dict[str, list[Tensor]] = {}
    if dict(getattr(config, "rope_scaling", ())).get("rope_type") == "llama3":
        found[SCALING] = (divisors(config), "F32")
    for theirs, tensor in model.checkpoint().items():
        stem, _, leaf = theirs.rpartition(".")
        numbers = [part for part in stem.split(".") if part.isdigit()]
        for number, sign in zip(numbers, ("{}", "*"), strict=False):
            stem = stem.replace(f".{number}.", f".{sign}.", 1)
        part = blocks.get(stem)
        if part is None:
            raise InputError(f"the tensor {theirs} has no name in GGUF files: this kind of model cannot be written")
        if part in known.layouts:
            tensor = known.layouts[part][1](tensor, config.n_kv_head if part == "attn_k" else config.n_head)
        name = f"blk.{numbers[0]}.{part}.{leaf}" if numbers else f"{part}.{leaf}"
        if "*" in stem:
            experts.setdefault(name, []).append(tensor)
        else:
            found[name] = (tensor, _type(name, tensor, kind))
    return found | {name: (torch.stack(parts), _type(name, parts[0], kind)) for name, parts in experts.items()}


def _type(name: str, tensor: Tensor, kind: str) -> str:
    if tensor.dim() == 1 or name.startswith("position_embd") or ".ffn_gate_inp." in name:
        return "F32"
    chosen = FINER.get(kind, kind) if name in (EMBEDDING, "output.weight") else kind
    return chosen if tensor.shape[-1] % gguf.SIZES[chosen].weights == 0 else "F16"


def divisors(config: Any) -> Tensor:
    """What Llama 3.1 divides each rate of turning by, (D/2,)."""
    from llmcli.models.llama import frequencies

    return frequencies(replace(config, rope_scaling=())) / frequencies(config)


def vocabulary(tokenizer: Tokenizer, settings: Mapping[str, Any], size: int) -> dict[str, Any]:
    """What the file says of the tokenizer, padded to `size` tokens.

    Raises InputError for a tokenizer of another kind than the two that are read.
    """
    backend = tokenizer.backend
    described = json.loads(backend.to_str())
    model, added = described["model"], backend.get_added_tokens_decoder()
    pieces = [backend.id_to_token(number) for number in range(size)]
    if model["type"] != "BPE" or len({piece for piece in pieces if piece}) != sum(map(bool, pieces)):
        raise InputError(f"a tokenizer of the kind {model['type']} cannot be written as GGUF; expected BPE")
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    types = []
    for number, piece in enumerate(pieces):
        special = added.get(number)
        ours = UNUSED if piece is None else NORMAL
        if special is not None:
            ours = UNKNOWN if piece == model["unk_token"] else CONTROL if special.special else USER_DEFINED
        elif model["byte_fallback"] and piece and BYTE_PIECE.fullmatch(piece):
            ours = BYTE
        types.append(ours)
    found: dict[str, Any] = {
        f"{PREFIX}tokens": [f"[PAD{number}]" if piece is None else piece for number, piece in enumerate(pieces)],
        f"{PREFIX}token_type": types,
    }
    if model["byte_fallback"]:
        score = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))}
        found |= {
            f"{PREFIX}model": "llama",
            f"{PREFIX}scores": [score.get(piece, -float(len(merges))) for piece in found[f"{PREFIX}tokens"]],
            f"{PREFIX}add_space_prefix": tokenizer.leads_with_space,
        }
    else:
        found |= {
            f"{PREFIX}model": "gpt2",
            f"{PREFIX}pre": way_of_cutting(backend),
            f"{PREFIX}merges": [" ".join(merge) for merge in merges],
        }
    before, bos = tokenizer.encode_prompt(""), settings.get("bos_token")
    opening = before[0] if before else backend.token_to_id(bos) if isinstance(bos, str) else None
    found |= {} if opening is None else {f"{PREFIX}bos_token_id": opening}
    found |= {} if tokenizer.eos_id is None else {f"{PREFIX}eos_token_id": tokenizer.eos_id}
    found[f"{PREFIX}add_bos_token"] = bool(before)
    template = settings.get("chat_template")
    return found | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def way_of_cutting(backend: Backend) -> str:
    """GGUF's name for how a byte-level tokenizer cuts words. Raises InputError for one that has none."""

    def told(part: Any) -> Any:  # offsets change no id
        return json.loads(part.__getstate__().replace(b'"trim_offsets":false', b'"trim_offsets":true'))

    normalizer = backend.normalizer
    if backend.pre_tokenizer is not None and (normalizer is None or told(normalizer)["type"] == "NFC"):
        for name in ("gpt-2", "smollm", *PATTERNS):
            if told(backend.pre_tokenizer) == told(words(name)):
                return name
    raise InputError("the tokenizer's way of cutting words has no name in GGUF files: this model cannot be written")
