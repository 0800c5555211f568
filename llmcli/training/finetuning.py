"""Fine-tuning: from a checkpoint and examples to a trainer that continues from it, whole or through adapters.

Introduces loading, adapters and training to one another; knows no terminals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcli import description, loading
from llmcli.chat_template import ChatTemplate
from llmcli.checkpoints import directory
from llmcli.classification import Figures, figures
from llmcli.data import corpus
from llmcli.data.batches import IGNORED, HeldOut, Row, Shard
from llmcli.data.examples import Labelled
from llmcli.errors import InputError, ModelError
from llmcli.loading import CLASSIFIES, Loaded
from llmcli.models import model_class
from llmcli.nn.classifier import classifier
from llmcli.training import lora
from llmcli.training.lora import LoRA
from llmcli.training.trainer import DROPOUTS, Trainer

Export = Callable[[Any], dict[str, Tensor]]

ORIGIN = "finetune.json"  # in the output directory: what the run began from


def load(
    spec: str,
    *,
    kinds: Sequence[str] = ("decoder",),
    device: str,
    dropout: float,
    offline: bool,
    progress: loading.Progress | None = None,
) -> Loaded:
    """A model of one of the kinds to train, in float32.

    Raises InputError for a dropout that its architecture does not have.
    """
    config = description.config(loading.find(spec, offline=offline))
    there = {field.name for field in fields(model_class(config.get("model_type")).Config)}.intersection(DROPOUTS)
    if dropout and not there:
        raise InputError(f"dropout: expected 0, since {config['model_type']} models have none; got {dropout}")
    changes = {name: 0.0 if name == "attn_pdrop" else dropout for name in there}
    return loading.load(
        spec,
        kinds=kinds,
        device=device,
        dtype="float32",
        offline=offline,
        pack=False,
        changes=changes,
        progress=progress,
    )


def origin(loaded: Loaded, task: str, adapters: LoRA | None, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """What a run begins from, for ORIGIN; a run that continues must begin from the same."""
    return {
        "schema": "llmcli/finetune-origin/1",
        "model": loaded.name,
        "model_sha256": loaded.sha256(),
        "task": task,
        "lora": asdict(adapters) | {"targets": list(adapters.targets)} if adapters else None,
        "labels": None if labels is None else list(labels),
    }


def check_output(output: Path, loaded: Loaded) -> None:
    """Raises InputError when a run would write over the model that it begins from."""
    if output.exists() and output.resolve() == directory.of(loaded.path).resolve():
        raise InputError(f"--output {output} is the model that is tuned; give another directory")


def check_origin(start: Path, expected: dict[str, Any]) -> None:
    """Raises ModelError unless the run in `start` began as this one does; where its model lies does not matter."""
    missing = f"no such file, so {start} is no run of finetune; give another --output"
    found = description.read_object(start / ORIGIN, missing)
    for key, value in expected.items():
        if key != "model" and found.get(key) != value:
            raise ModelError(
                f"{start}: the run there began with {key} {json.dumps(found.get(key))}, "
                f"this one with {json.dumps(value)}; give the same flags, or another --output"
            )


def prepare(decoder: Any, adapters: LoRA | None, labels: Sequence[str] | None, seed: int) -> tuple[Any, Export]:
    """The model to train, from a decoder that is changed in place, and the function that makes a checkpoint of it.

    With adapters the decoder is frozen and they are merged into the checkpoint; with labels it gets a head, which is
    always trained.
    """
    if adapters is not None:
        lora.attach(decoder, adapters, seed)
    model: Any = decoder
    if labels is not None:
        model = classifier(decoder, len(labels)).initialize_head(torch.Generator().manual_seed(seed))
        model.to(next(decoder.parameters()).device)
        if (head := getattr(decoder, "lm_head", None)) is not None:  # of a decoder: no text is written, nothing learned
            head.requires_grad_(False)

    def export(trained: Any) -> dict[str, Tensor]:
        plain: Any = trained if adapters is None else lora.merged(trained)
        weights: dict[str, Tensor] = plain.checkpoint()
        return weights

    return model, export


def label_names(training: Sequence[Labelled], held: Sequence[Labelled]) -> list[str]:
    """The classes of the training examples, sorted. Raises InputError for fewer than two, or one only in `held`."""
    labels = sorted({one.label for one in training})
    if len(labels) < 2:
        raise InputError(f"expected examples of at least two labels, got only {', '.join(labels) or 'none'}")
    for one in held:
        if one.label not in labels:
            raise InputError(
                f"{one.name}: the label {one.label!r} of this validation example is in no training example; "
                f"expected one of: {', '.join(labels)[:200]}"
            )
    return labels


def class_rows(ids: Sequence[Tensor], numbers: Sequence[int], *, encoder: bool = False) -> list[Row]:
    """Texts (n,) and the numbers of their classes, which are the targets of the last tokens.

    For an encoder, which must know where a text ends, the last token stands there as ~id.
    """
    rows = []
    for tokens, number in zip(ids, numbers, strict=True):
        targets = torch.full_like(tokens, IGNORED)
        targets[-1] = number
        if encoder:
            tokens = torch.cat([tokens[:-1], ~tokens[-1:]])
        rows.append(Row(tokens, targets))
    return rows


@dataclass(frozen=True)
class ClassEvaluation:
    """Loss in nats per text and the figures of a whole validation."""

    step: int
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    val_figures: Figures


def evaluate_classes(trainer: Trainer, held: HeldOut, labels: Sequence[str]) -> ClassEvaluation:
    """Classify every text of a validation."""

    def one(shard: Shard) -> tuple[float, list[int], list[int]]:
        inputs, targets = (part.to(trainer.device) for part in shard)
        known = targets != IGNORED
        logits, wanted = trainer.model(inputs)[known].float(), targets[known]
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        return loss, wanted.tolist(), logits.argmax(-1).tolist()

    losses, wanted, got = zip(*trainer.map(one, held.shards), strict=True)
    found = figures(labels, list(chain.from_iterable(wanted)), list(chain.from_iterable(got)))
    n = sum(map(len, wanted))
    return ClassEvaluation(trainer.steps_done, sum(losses) / n, found.accuracy, found.macro["f1"], found)


def template(loaded: Loaded) -> ChatTemplate:
    """The chat template of a model, or the simple one."""
    return description.chat_template(loaded.path, loaded.tokenizer.end_of_text())


def files(loaded: Loaded, began: dict[str, Any], dtype: str, template: ChatTemplate | None) -> dict[str, str]:
    """The texts beside the weights: configuration, tokenizer with its chat template, and what the run began from."""
    config = {key: value for key, value in loaded.config.items() if key != "torch_dtype"} | {"dtype": dtype}
    labels = began["labels"]
    if labels is not None:
        name = str((config.get("architectures") or ["GPT2LMHeadModel"])[0])
        config["architectures"] = [re.sub("(LMHead|DoubleHeads)?Model$|For[A-Z][A-Za-z]*$", "", name) + CLASSIFIES]
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    settings = {} if template is None else {"chat_template": template.source}
    made = corpus.copied_files(description.tokenizer_settings(loaded.path), loaded.tokenizer, config, settings)
    return made | {ORIGIN: json.dumps(began, indent=2) + "\n"}


def context(loaded: Loaded, wanted: int | None) -> int:
    """Tokens of a row at most: as wanted, or as many as the model reads, but no more than 1024 unasked."""
    limit = int(loaded.model.config.n_positions)
    if wanted is not None and wanted > limit:
        raise InputError(f"--ctx-size: expected at most {limit} tokens, which is all this model reads, got {wanted}")
    return wanted or min(1024, limit)
