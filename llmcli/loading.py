"""From what the user typed to a model and its tokenizer: find the files (hub.py), build, map, rename, assign."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmcli import __version__, description
from llmcli.checkpoints import directory
from llmcli.description import gguf_model
from llmcli.device import choose_device
from llmcli.errors import InputError, ModelError
from llmcli.hub import ALIASES, DEFAULT, find
from llmcli.models import model_class
from llmcli.nn import prepacked, quantized
from llmcli.nn.classifier import classifier as add_classifier
from llmcli.nn.linear import Linear
from llmcli.ops import finite, linear_blocks, linear_blocks_pack, registry
from llmcli.tokenizer import Tokenizer

__all__ = ["ALIASES", "DEFAULT", "Loaded", "find", "load", "sha256"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CACHE_DTYPES = {**DTYPES, "int8": torch.int8}

CLASSIFIES = "ForSequenceClassification"  # how the architecture's name ends in the config.json of a classifier

HELD = 32 << 20  # bytes of a file's pages in memory beside packed weights; `quantized.PIECE` beside quantised ones

# What a model of another kind than wanted is for.
USES = {
    "decoder": "use 'llmcli generate', 'perplexity' or 'score'",
    "encoder-decoder": "use 'llmcli generate', 'finetune' or 'evaluate' on prompts with completions",
    "encoder": "use 'llmcli fill-mask', 'embed', or 'finetune --task classify' and 'classify'",
}

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and where it came from."""

    model: Any
    tokenizer: Tokenizer
    config: dict[str, Any]
    name: str
    path: Path
    dtype: torch.dtype
    device: torch.device
    repetition_penalty: float = 1.0  # what the model's generation_config.json advises
    labels: Sequence[str] = ()  # of a classifier
    quantized: str | None = None  # "int8" or "int4"
    cache_dtype: torch.dtype | None = None  # what the cache of keys and values holds, where that is not dtype

    @property
    def answers(self) -> bool:
        """Whether the model answers a prompt, as encoder-decoders do, instead of continuing it."""
        return bool(self.model.KIND == "encoder-decoder")

    def sha256(self) -> str:
        """Hash of the weight files, in hexadecimal."""
        return sha256(self.path)

    def engine(self) -> dict[str, Any]:
        """What computes: the fields under "llmcli" in a JSON document."""
        return {
            "version": __version__,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantized": self.quantized,
            "cache_dtype": str(self.cache_dtype or self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "kernels": registry.build_info().get("isa", "torch"),
            "model_sha256": self.sha256(),
        }


def sha256(path: Path) -> str:
    """Hash of a checkpoint's weight files, in order, in hexadecimal."""
    digest = hashlib.sha256()
    for file in directory.weight_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load(
    spec: str | os.PathLike[str] = "default",
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    pack: bool = True,
    kinds: Collection[str] = ("decoder",),
    classifier: bool = False,
    quantize: str | None = None,
    cache_dtype: str = "auto",
    changes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """A directory, file, hub id or alias → a model in eval mode and its tokenizer.

    pack lays the matrices out for the CPU kernels, for inference; training needs pack=False. quantize brings them to
    "int8" or "int4", which a checkpoint may also be already; cache_dtype, "auto" or one of CACHE_DTYPES, is what the
    cache of keys and values holds. `kinds` are those that the caller can use: "decoder", "encoder-decoder", "encoder".
    With `classifier` the model is one of Loaded.labels. `changes` replace keys of config.json for the model,
    such as its dropout, and not in Loaded.config.
    Raises ModelError for files that are missing or malformed, ResourceError for a device that is not there.
    """
    path = find(spec, offline=offline)
    where = choose_device(device)
    config = description.config(path)
    narrow_blocks = dtype in ("auto", "bfloat16")
    packs = pack and where.type == "cpu" and registry.kernels is not None
    in_place = linear_blocks.BITS if packs and narrow_blocks and quantize is None else ()
    weights = description.weights(path, torch.bfloat16 if narrow_blocks else torch.float32, in_place)
    labels = class_labels(config)
    if classifier != (labels is not None):
        kind = "a language model" if labels is None else f"a classifier of {', '.join(labels)[:80]}"
        wanted = "a classifier, as 'llmcli finetune --task classify' makes" if classifier else "a language model"
        raise ModelError(f"{path}: expected {wanted}; got {kind}")
    model_cls = model_class(config.get("model_type"))
    if model_cls.KIND not in kinds:
        raise ModelError(
            f"{path}: {config['model_type']} is of the kind {model_cls.KIND}, expected {' or '.join(kinds)}: "
            f"{USES[model_cls.KIND]}"
        )
    ready = prepacked.described(config)
    as_it_is = where.type == "cpu" and pack and quantize in (None, ready and ready[1])
    if ready and not (as_it_is and dtype in ("auto", ready[0])):
        raise InputError(
            f"{path} is packed in {ready[1] or ready[0]} for inference on a CPU: use the model that it was made from"
        )
    already = quantized.described(config)
    if already and (quantize not in (None, already) or not pack):
        asked = f"asked for {quantize}" if pack else "plain weights are needed"
        raise InputError(f"{path} is quantised to {already}, and {asked}: use the model that it was made from")
    ours = (prepacked.KEY, *([quantized.KEY] if already else []))
    settings = {key: value for key, value in config.items() if key not in ours}
    model_config = model_cls.Config.from_dict({**settings, **(changes or {})})
    if model_config.n_layer > len(weights):  # before anything is built as large as the file pretends to be
        raise ModelError(
            f"{path}: config.json asks for {model_config.n_layer} layers; there are {len(weights)} tensors"
        )
    with ThreadPoolExecutor(1) as beside:  # GPT-2's own tokenizer takes as long to read as its weights
        opening = beside.submit(description.tokenizer, path)
        try:
            with torch.device("meta"):
                model = model_cls(model_config)
                if labels is not None:
                    model = add_classifier(model, len(labels))
        except (RuntimeError, TypeError) as error:  # torch's words for sizes, or products of them, beyond 64 bits
            raise ModelError(f"{path}: config.json asks for tensors that no machine holds") from error
        if ready:
            chosen, narrow = DTYPES[ready[0]], ready[1]
            prepacked.assign(model, weights, chosen, narrow)
            model.pack()
        else:
            renamed, narrow = model.rename(weights), already or quantize
            if already:
                _assign_quantized(model, renamed, where, path)
            blocks = bool(in_place) and _assign_blocks(model, renamed, weights, path)
            automatic = torch.bfloat16 if blocks else _automatic_dtype(renamed, where)
            chosen = DTYPES[dtype] if dtype != "auto" else automatic

            release = weights.release if packs else None

            def settle(module: torch.nn.Module, name: str) -> None:
                if module.weight is getattr(model, "tokens", None) and (narrow or packs):
                    model.settle_tied(narrow, release)
                elif isinstance(module, Linear):
                    if narrow:
                        module.quantize(model.bits(narrow, name), f"{name}.weight", release)
                    elif packs:
                        module.pack()

            most = quantized.PIECE if narrow else HELD
            _assign(model, renamed, chosen, where, settle, path, progress, release, most)
            if narrow:
                model.quantize(narrow)
            if packs:
                weights.release()
                model.pack()
                weights.release()
        held = set_cache_dtype(model, cache_dtype, chosen)
        tokenizer = opening.result()
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ModelError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} entries, but vocab_size in config.json is "
            f"{model.config.vocab_size}: the files belong to different models"
        )
    advised = description.repetition_penalty(path)
    return Loaded(model.eval(), tokenizer, config, str(spec), path, chosen, where, advised, labels or (), narrow, held)


def set_cache_dtype(model: Any, name: str, dtype: torch.dtype) -> torch.dtype | None:
    """Let the model's cache hold what a flag names; None where that is `dtype`, the activations' own type.

    Raises InputError for a model that has no such choice.
    """
    held = dtype if name == "auto" else CACHE_DTYPES[name]
    if held is dtype:
        return None
    if not getattr(model, "CACHES_KEYS", False):
        kind = type(model).__name__
        raise InputError(f"--cache-dtype {name}: {kind} models have no cache to choose a type for; leave it out")
    model.cache_dtype = held
    return held


def class_labels(config: dict[str, Any]) -> list[str] | None:
    """The classes of a model for sequence classification, in the order of its logits; None for another model.

    Raises ModelError when they are not named 0, 1, … under id2label.
    """
    names = config.get("architectures")
    if not (isinstance(names, list) and any(str(name).endswith(CLASSIFIES) for name in names)):
        return None
    by_number = config.get("id2label")
    try:
        labels = [by_number[str(number)] for number in range(len(by_number))]  # type: ignore[index, arg-type]
    except (TypeError, KeyError):
        labels = []
    if len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise ModelError(f"config.json: expected id2label with the names of classes 0, 1, …; got {by_number!r}"[:300])
    return labels


def _assign(
    model: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    settle: Callable[[torch.nn.Module, str], None],
    path: Path,
    progress: Progress | None,
    release: quantized.Release,
    most: int,
) -> None:
    """Put each tensor in its place, cast, moved and checked, and settle each matrix, so that copies do not add up.

    release lets go of the file's pages, once `most` bytes were read of which the model has what it needs.
    """
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    for names, problem in ((missing, "is missing"), (unknown, "has no place in this architecture")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ModelError(f"{path}: the tensor {names[0]} {problem}{more}: config.json and weights do not match")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ModelError(
                f"{path}: {name} has shape {list(weights[name].shape)}; config.json asks for {list(shape)}"
            )
        if not weights[name].is_floating_point():
            raise ModelError(f"{path}: {name} holds {weights[name].dtype}; expected floating-point weights")
    total, done, held = sum(tensor.nbytes for tensor in weights.values()), 0, 0
    for name in expected:
        stored = weights.pop(name)
        done += stored.nbytes
        tensor = stored.to(device, dtype)
        if not all(finite(part) for part in quantized.pieces(tensor, release)):
            if not finite(stored):
                raise ModelError(f"{path}: {name} holds NaN or infinity; expected finite weights: fetch it again")
            raise ModelError(f"{path}: {name} holds numbers that {dtype} cannot: use --dtype float32 or bfloat16")
        where, _, leaf = name.rpartition(".")
        module = model.get_submodule(where)
        setattr(module, leaf, torch.nn.Parameter(tensor))
        if leaf == "weight":
            settle(module, where)
        held += stored.nbytes
        if release is not None and held > most:
            release()
            held = 0
        if progress is not None:
            progress(done, total)


def _assign_quantized(model: Any, weights: dict[str, torch.Tensor], device: torch.device, path: Path) -> None:
    """Take the integers and scales of every matrix out of `weights` and into their layers."""
    for name, layer in model.matrices():
        q, scale = (weights.pop(f"{name}.{leaf}", None) for leaf in quantized.LEAVES)
        if q is None or scale is None:
            raise ModelError(f"{path}: {name} has no {' or '.join(quantized.LEAVES)}: config.json and weights differ")
        shapes = quantized.shapes(layer.out_features, layer.in_features, q.dtype)
        if (tuple(q.shape), tuple(scale.shape)) != shapes or scale.dtype != torch.bfloat16:
            raise ModelError(
                f"{path}: {name} has integers {list(q.shape)} of {q.dtype} and scales {list(scale.shape)} of "
                f"{scale.dtype}; expected {' and '.join(map(str, map(list, shapes)))}, the scales in bfloat16"
            )
        if not finite(scale):
            raise ModelError(f"{path}: {name}.scales holds NaN or infinity; expected finite scales: fetch it again")
        layer.set_quantized(q.to(device), scale.to(device))


def _assign_blocks(model: Any, weights: dict[str, torch.Tensor], file: description.Weights, path: Path) -> bool:
    """Pack the matrices of `weights` that are rows of a GGUF file and take them out of it; True if there was one.

    Of the others, such as embeddings, the rows become numbers.
    """
    rows = {name: tensor for name, tensor in weights.items() if not tensor.is_floating_point()}
    if not (rows and isinstance(file, gguf_model.Renamed)):
        return False
    tied = next((name for name, parameter in model.named_parameters() if parameter is model.tokens), None)
    layers, done, held = prepacked.linear_layers(model), 0, 0
    for name, begins in rows.items():
        data, kind, columns = file.stored.blocks(begins)
        layer, bits = layers.get(name.removesuffix(".weight")), linear_blocks.BITS[kind]
        if layer is None or (layer.out_features, layer.in_features) != (len(begins), columns):
            weights[name] = file.stored.unpacked(begins)
            if name != tied or "lm_head" in layers or weights[name].shape != model.tokens.shape:
                continue
            with torch.device("meta"):
                layer = dict(model.matrices())["lm_head"]  # a matrix of its own
        else:
            del weights[name]
        packed = linear_blocks_pack(data, begins[:, 0].contiguous(), kind, columns)
        if not all(finite(part) for part in linear_blocks.scales(packed, bits)):
            raise ModelError(f"{path}: {name} holds NaN or infinity; expected finite weights: fetch it again")
        layer.set_packed(packed, bits)
        done, held = done + 1, held + packed.nbytes
        if held > HELD:
            file.release()
            held = 0
    return done > 0


def _automatic_dtype(weights: dict[str, torch.Tensor], device: torch.device) -> torch.dtype:
    """The checkpoint's own precision, but float32 for float16 on a CPU.

    bfloat16 is the faster one for prompts and for single tokens, so a bfloat16 checkpoint is not widened. float32 holds
    every float16 exactly, cannot overflow, and reads prompts faster (docs/LOG.md has the figures).
    """
    stored = max(weights.values(), key=torch.Tensor.numel).dtype
    return torch.float32 if device.type == "cpu" and stored == torch.float16 else stored
