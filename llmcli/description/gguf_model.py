"""A GGUF file as a model of Hugging Face: its metadata as config.json, its tensors under those names and layouts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmcli.checkpoints import gguf
from llmcli.description.gguf_names import ARCHITECTURES, DEFAULTS, REFUSED, WITH_EXPERTS, Architecture
from llmcli.errors import ModelError

if TYPE_CHECKING:  # the configuration needs no torch
    import torch
    from torch import Tensor

EMBEDDING, HEAD, SCALING = "token_embd.weight", "output.weight", "rope_freqs.weight"
MOST_EXPERTS = 1 << 10  # of one block, which no model reaches, so that a lie costs little
LARGEST = {"gemma2": 46, "gemma3": 62}  # blocks
NAME = re.compile(r"(?:blk\.(\d+)\.)?(.+)\.(weight|bias)")


def architecture(file: gguf.File) -> tuple[str, Architecture]:
    """What general.architecture names. Raises ModelError for one that is not in the table."""
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: the architecture {name!r} is not supported in GGUF files; expected one of: "
            f"{', '.join(sorted(ARCHITECTURES))}: try the model's safetensors"
        )
    known = WITH_EXPERTS if file.metadata.get(f"{name}.expert_count", 0) and name in WITH_EXPERTS else ARCHITECTURES
    return name, known[name]


def config(file: gguf.File) -> dict[str, Any]:
    """The keys of a config.json, from the metadata and the shapes. Raises ModelError for what is not understood."""
    name, known = architecture(file)
    for key, off in REFUSED.items():
        value = file.metadata.get(f"{name}.{key}", off)
        if value != off and key not in known.keys.values():
            raise ModelError(f"{file.path}: {name}.{key} = {value} is not supported: try the model's safetensors")
    for tensor in (EMBEDDING, "output_norm.weight"):
        if tensor not in file.tensors:
            raise ModelError(f"{file.path}: expected the tensor {tensor}, got none: convert the model anew")
    result = {"model_type": known.model_type, "vocab_size": file.tensors[EMBEDDING].shape[0], **known.constants}
    for ours, theirs in known.keys.items():
        result[ours] = _setting(file, f"{name}.{theirs}", DEFAULTS.get(theirs))
    result["tie_word_embeddings"] = tied(file)
    result["dtype"] = gguf.PLAIN.get(file.tensors[EMBEDDING].kind, "bfloat16")
    if known.model_type == "gpt_neox":
        rotated = file.get(f"{name}.rope.dimension_count", int)
        result["rotary_pct"] = rotated * result["num_attention_heads"] / result["hidden_size"]
    if "rope_theta" in known.keys:
        _rotary(file, name, result)
    for key in ("bos_token_id", "eos_token_id"):
        if f"tokenizer.ggml.{key}" in file.metadata:
            result[key] = file.get(f"tokenizer.ggml.{key}", int)
    return result


def _setting(file: gguf.File, key: str, default: Any) -> Any:
    """A number of the metadata; one for each block only where all have the same. Two may be left out."""
    value = file.metadata.get(key, default)
    if isinstance(value, gguf.Items):
        found = set(file.items(key, int))
        value = found.pop() if len(found) == 1 else value
    if value is None and key.endswith((".head_count_kv", ".key_length")):
        return None
    if not isinstance(value, bool | int | float):
        got = "none" if value is None else "several values" if isinstance(value, gguf.Items) else repr(value)[:80]
        raise ModelError(f"{file.path}: expected one number {key} in the metadata, got {got}: convert the model anew")
    return value


def tied(file: gguf.File) -> bool:
    """Whether the head is the token embedding: there is none, or one with the same bytes."""
    if HEAD not in file.tensors:
        return True
    head, embedding = file.tensors[HEAD], file.tensors[EMBEDDING]
    if (head.kind, head.shape) != (embedding.kind, embedding.shape):
        return False
    with memoryview(file.map) as whole, whole[head.begin : head.end] as a, whole[embedding.begin : embedding.end] as b:
        return a == b


def _rotary(file: gguf.File, name: str, result: dict[str, Any]) -> None:
    """What Llama's kin leave to defaults: heads, their size, biases, and the scaling of positions."""
    heads, width = result["num_attention_heads"], result["hidden_size"]
    size = file.metadata.get(f"{name}.rope.dimension_count")
    head_dim = result["head_dim"] or size or (width // heads if heads else 0)
    if size not in (None, head_dim) or file.metadata.get(f"{name}.attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{file.path}: expected heads of one size, all of it rotated, got {head_dim} and {size}")
    result["head_dim"], result["num_key_value_heads"] = head_dim, result["num_key_value_heads"] or heads
    result["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
    result["qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
    if name in LARGEST:
        # llama.cpp knows the largest one by its blocks; the scores of the others have the usual scale.
        largest = result["num_hidden_layers"] == LARGEST[name]
        result["query_pre_attn_scalar"] = width // heads if largest and heads else head_dim
        if name == "gemma3":
            result["rope_local_base_freq"] = file.get(f"{name}.rope.freq_base_swa", float, 10000.0)
    elif file.metadata.get(f"{name}.attention.sliding_window", 0):
        result["sliding_window"] = file.get(f"{name}.attention.sliding_window", int)
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "linear":
        result["rope_scaling"] = {"rope_type": "linear", "factor": file.get(f"{name}.rope.scaling.factor", float)}
    elif kind != "none":
        raise ModelError(f"{file.path}: {name}.rope.scaling.type = {kind!r} is not supported; expected none or linear")
    if SCALING in file.tensors:
        result["rope_scaling"] = _llama3(file, result)


def _llama3(file: gguf.File, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling of positions, of which the file holds only what each rate is divided by."""
    import torch

    from llmcli.models.llama import LlamaConfig, frequencies

    stored = gguf.Weights(file, torch.float32)[SCALING].double()
    factor = float(stored.max())
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    plain, scaled = (
        frequencies(LlamaConfig.from_dict({**config, "rope_scaling": rope}))
        for rope in (None, scaling if factor > 0 else {})
    )
    if stored.shape != plain.shape or not torch.allclose(plain / scaled, stored, rtol=1e-4):
        raise ModelError(f"{file.path}: {SCALING} is not Llama 3.1's scaling of positions: try the model's safetensors")
    return scaling


class Renamed(Mapping[str, "Tensor"]):
    """The tensors of a file under Hugging Face's names and in its layouts, lazily, read as `stored` reads them."""

    def __init__(self, file: gguf.File, dtype: torch.dtype, in_place: Collection[str] = ()):
        name, self._known = architecture(file)
        self.stored = gguf.Weights(file, dtype, in_place)
        self._heads = _setting(file, f"{name}.attention.head_count", None)
        self._kv_heads = _setting(file, f"{name}.attention.head_count_kv", self._heads)
        self._names: dict[str, tuple[str, int | None]] = {}  # what it is called in the file, and which expert of it
        for name, stored in file.tensors.items():
            called = theirs(name, self._known)
            if "*" in called:
                self._names |= {called.replace("*", str(n)): (name, n) for n in range(_experts(file, name, stored))}
            elif name != SCALING:
                self._names[called] = name, None

    def __getitem__(self, name: str) -> Tensor:
        stored, expert = self._names[name]
        tensor = self.stored[stored] if expert is None else self.stored.slice(stored, expert)
        match = NAME.fullmatch(stored)
        layouts = self._known.layouts.get(match[2]) if match else None
        if layouts is None:
            return tensor
        heads = self._kv_heads if match and match[2] == "attn_k" else self._heads
        try:
            return layouts[0](tensor, heads)
        except RuntimeError:
            raise ModelError(
                f"{self.stored.file.path}: {stored} has shape {list(tensor.shape)}, which {heads} heads do not divide"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def release(self) -> None:
        """As gguf.Weights.release."""
        self.stored.release()


def _experts(file: gguf.File, name: str, stored: gguf.Stored) -> int:
    """How many matrices lie in a tensor. Raises ModelError where they are not as many as the experts."""
    count: int = file.get(f"{file.get('general.architecture', str)}.expert_count", int)
    if len(stored.shape) != 3 or stored.shape[0] != count or count > MOST_EXPERTS:
        raise ModelError(
            f"{file.path}: {name} has shape {list(stored.shape)}; expected the matrices of {count} experts, at most "
            f"{MOST_EXPERTS}: convert the model anew"
        )
    return count


def theirs(name: str, known: Architecture) -> str:
    """Hugging Face's name of a tensor; a name that is not in the table stays, and has no place in any model."""
    match = NAME.fullmatch(name)
    found = known.tensors.get(match[2]) if match else None
    if match is None or found is None or ("{}" in found) != (match[1] is not None):
        return name
    return f"{found.format(match[1])}.{match[3]}"
