"""Architectures: one file each, readable in one sitting; they know ids and tensors, never text, files or devices.

A model offers `start`/`step` (generation), `logprobs`/`predictions`/`distributions` (scoring), `forward` (training),
`hidden` (classification), `rename`/`checkpoint` (its names in a checkpoint) and `flops`/`bytes_read` (what a step costs
at least), as far as its KIND has them. Its blocks are a ModuleList, where adapters and activation checkpointing find
them. To add one, add a file and a row here.
"""

from __future__ import annotations

import importlib
from typing import Any

from llmcli.errors import ModelError

MODELS = {
    "bert": "llmcli.models.bert:Bert",
    "bloom": "llmcli.models.bloom:Bloom",
    "camembert": "llmcli.models.bert:Bert",
    "gemma2": "llmcli.models.gemma2:Gemma2",
    "gemma3_text": "llmcli.models.gemma3:Gemma3",
    "gpt2": "llmcli.models.gpt2:GPT2",
    "gpt_neox": "llmcli.models.gpt_neox:GPTNeoX",
    "llama": "llmcli.models.llama:Llama",
    "lstm": "llmcli.models.lstm:LSTM",
    "mistral": "llmcli.models.llama:Llama",
    "mixtral": "llmcli.models.mixtral:Mixtral",
    "mt5": "llmcli.models.t5:T5",
    "openai-gpt": "llmcli.models.openai_gpt:OpenAIGPT",
    "opt": "llmcli.models.opt:OPT",
    "phi3": "llmcli.models.phi3:Phi3",
    "qwen2": "llmcli.models.llama:Llama",
    "qwen3": "llmcli.models.llama:Llama",
    "roberta": "llmcli.models.bert:Bert",
    "t5": "llmcli.models.t5:T5",
    "xlm-roberta": "llmcli.models.bert:Bert",
}


def model_class(model_type: object) -> Any:
    """The class that reads `config.json` files of this model_type."""
    if not isinstance(model_type, str) or model_type not in MODELS:
        raise ModelError(
            f"model_type {model_type!r} in config.json is not supported; expected one of: {', '.join(sorted(MODELS))}"
        )
    module, name = MODELS[model_type].split(":")
    return getattr(importlib.import_module(module), name)
