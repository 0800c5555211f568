"""What a model says of itself: configuration, tokenizer, chat template; from files beside its weights or inside a GGUF.

Knows names and layouts of checkpoints; builds no model.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.chat_template import ChatTemplate
from llmcli.checkpoints import directory, gguf, safetensors, tensorflow
from llmcli.description import gguf_model, gguf_vocabulary, gpt2_original
from llmcli.errors import ModelError
from llmcli.tokenizer import Tokenizer

if TYPE_CHECKING:  # describing a model needs no torch
    import torch


Weights = safetensors.Weights | gguf_model.Renamed | gpt2_original.Renamed


def weights(path: Path, dtype: torch.dtype, in_place: Collection[str] = ()) -> Weights:
    """The tensors of a checkpoint under Hugging Face's names.

    Blocks of ggml's formats are unpacked to dtype, matrices of the types `in_place` as `gguf.Weights` tells.
    """
    if gguf.recognised(path):
        return gguf_model.Renamed(gguf.open(path), dtype, in_place)
    return gpt2_original.Renamed(path) if tensorflow.recognised(path) else safetensors.open(path)


def config(path: Path) -> dict[str, Any]:
    """The `config.json` beside a checkpoint, or the same from inside it."""
    if gguf.recognised(path):
        return gguf_model.config(gguf.open(path))
    if tensorflow.recognised(path):
        file = directory.of(path) / gpt2_original.HPARAMS
        return gpt2_original.config(read_object(file, "no such file; it belongs to OpenAI's checkpoint of GPT-2"), file)
    file = directory.of(path) / "config.json"
    inside = sorted(path.glob("*.gguf")) if path.is_dir() else []
    wanted = "a model is config.json, *.safetensors and a tokenizer, a GGUF file, or GPT-2 as OpenAI published it"
    return read_object(file, f"no such file; {f'name the GGUF file itself: -m {inside[0]}' if inside else wanted}")


def tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint."""
    if gguf.recognised(path):
        return gguf_vocabulary.tokenizer(gguf.open(path))
    return Tokenizer.open(directory.of(path))


def tokenizer_settings(path: Path) -> dict[str, Any]:
    """The `tokenizer_config.json` of a checkpoint, with the chat template beside it; empty where there is none."""
    if gguf.recognised(path):
        return gguf_vocabulary.settings(gguf.open(path))
    file, template = (directory.of(path) / name for name in ("tokenizer_config.json", "chat_template.jinja"))
    found = read_object(file, "no such file") if file.exists() else {}
    return found | ({"chat_template": template.read_text("utf-8")} if template.exists() else {})


def chat_template(path: Path, eos_token: str) -> ChatTemplate:
    """The chat template of a checkpoint, else a simple one."""
    if gguf.recognised(path):
        return ChatTemplate.of(gguf_vocabulary.settings(gguf.open(path)), eos_token)
    return ChatTemplate.open(directory.of(path), eos_token)


def repetition_penalty(path: Path) -> float:
    """`repetition_penalty` of generation_config.json, 1 where it has none.

    Its other advice (temperature, top-k, …) is about sampling, and generation is greedy unless asked.
    """
    file = directory.advice(path)
    if file is None:
        return 1.0
    try:
        penalty = json.loads(file.read_text("utf-8")).get("repetition_penalty") or 1.0
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: expected a JSON object, got something else: {error}") from None
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 < penalty <= 100:
        raise ModelError(f"{file}: expected repetition_penalty above 0 and at most 100, got {penalty!r}")
    return float(penalty)


def read_object(file: Path, missing: str) -> dict[str, Any]:
    """A file that holds one JSON object. Raises ModelError, with `missing` where there is no such file."""
    try:
        document = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(document).__name__}")
    return document
