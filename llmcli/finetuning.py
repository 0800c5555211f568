"""Fine-tuning: from a checkpoint and examples to a trainer that continues from it, whole or through adapters.

Introduces loading, adapters and training to one another; knows no terminals.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from llmcli import data, loading, lora
from llmcli.chat_template import ChatTemplate
from llmcli.errors import InputError, ModelError
from llmcli.loading import Loaded
from llmcli.lora import LoRA
from llmcli.models import model_class
from llmcli.training import DROPOUTS

Item = TypeVar("Item")

ORIGIN = "finetune.json"  # in the output directory: what the run began from


def load(spec: str, *, device: str, dropout: float, offline: bool, progress: loading.Progress | None = None) -> Loaded:
    """A model to train, in float32. Raises InputError for a dropout that its architecture does not have."""
    config = loading.read_config(loading.find(spec, offline=offline))
    there = {field.name for field in fields(model_class(config.get("model_type")).Config)}.intersection(DROPOUTS)
    if dropout and not there:
        raise InputError(f"dropout: expected 0, since {config['model_type']} models have none; got {dropout}")
    changes = {name: 0.0 if name == "attn_pdrop" else dropout for name in there}
    return loading.load(
        spec, device=device, dtype="float32", offline=offline, pack=False, changes=changes, progress=progress
    )


def origin(loaded: Loaded, task: str, adapters: LoRA | None) -> dict[str, Any]:
    """What a run begins from, for ORIGIN; a run that continues must begin from the same."""
    return {
        "schema": "llmcli/finetune-origin/1",
        "model": loaded.name,
        "model_sha256": loaded.sha256(),
        "task": task,
        "lora": asdict(adapters) | {"targets": list(adapters.targets)} if adapters else None,
    }


def check_output(output: Path, loaded: Loaded) -> None:
    """Raises InputError when a run would write over the model that it begins from."""
    if output.exists() and output.resolve() == _directory(loaded).resolve():
        raise InputError(f"--output {output} is the model that is tuned; give another directory")


def check_origin(start: Path, expected: dict[str, Any]) -> None:
    """Raises ModelError unless the run in `start` began as this one does; where its model lies does not matter."""
    file = start / ORIGIN
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file, so {start} is no run of finetune; give another --output") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON ({error})") from None
    for key, value in expected.items():
        if key != "model" and (not isinstance(found, dict) or found.get(key) != value):
            got = found.get(key) if isinstance(found, dict) else found
            raise ModelError(
                f"{start}: the run there began with {key} {json.dumps(got)}, this one with {json.dumps(value)}; "
                "give the same flags, or another --output"
            )


def adapt(model: Any, adapters: LoRA, seed: int) -> Any:
    """Put adapters on a model, in place; returns a function that makes its checkpoint, with the adapters merged in."""
    lora.attach(model, adapters, seed)

    def export() -> dict[str, Tensor]:
        weights: dict[str, Tensor] = lora.merged(model).checkpoint()  # type: ignore[operator]
        return weights

    return export


def template(loaded: Loaded) -> ChatTemplate:
    """The chat template of a model, or the simple one."""
    return ChatTemplate.open(_directory(loaded), loaded.tokenizer.end_of_text())


def files(loaded: Loaded, began: dict[str, Any], dtype: str, template: ChatTemplate | None) -> dict[str, str]:
    """The texts beside the weights: configuration, tokenizer with its chat template, and what the run began from."""
    config = {key: value for key, value in loaded.config.items() if key != "torch_dtype"} | {"dtype": dtype}
    settings = {} if template is None else {"chat_template": template.source}
    made = data.copied_files(_directory(loaded), loaded.tokenizer, config, settings)
    return made | {ORIGIN: json.dumps(began, indent=2) + "\n"}


def hold_out(lessons: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(training, validation): a share of the examples drawn by the seed, at least one if there are two."""
    n_held = min(len(lessons) - 1, max(1, round(len(lessons) * fraction))) if fraction else 0
    order = torch.randperm(len(lessons), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[:n_held])
    training = [lesson for place, lesson in enumerate(lessons) if place not in held]
    return training, [lesson for place, lesson in enumerate(lessons) if place in held]


def context(loaded: Loaded, wanted: int | None) -> int:
    """Tokens of a row at most: as wanted, or as many as the model reads, but no more than 1024 unasked."""
    limit = int(loaded.model.config.n_positions)
    if wanted is not None and wanted > limit:
        raise InputError(f"--ctx-size: expected at most {limit} tokens, which is all this model reads, got {wanted}")
    return wanted or min(1024, limit)


def _directory(loaded: Loaded) -> Path:
    return loaded.path if loaded.path.is_dir() else loaded.path.parent
