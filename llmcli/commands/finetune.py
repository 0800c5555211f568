"""`llmcli finetune`: a model and examples in, a better model directory out."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import classes, learning, material, watching
from llmcli.commands.learning import Run, recipe_options, run_options
from llmcli.commands.options import (
    WRITES,
    ModelChoice,
    Number,
    define,
    model_options,
    option,
    seed_option,
    verbosity_options,
)
from llmcli.commands.progress import Progress, quiet_hub
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.loading import Loaded
    from llmcli.training.distributed import Team
    from llmcli.training.finetuning import ClassEvaluation
    from llmcli.training.lora import LoRA
    from llmcli.training.trainer import Trainer

RATE, LORA_RATE = 3e-4, 2e-3
KINDS = {"lm": WRITES, "classify": ("decoder", "encoder")}  # of models that can learn a task


@define(
    "finetune",
    examples=[
        ("the embedded model on your own texts", "llmcli finetune --data notes/ --output runs/notes"),
        ("answers to prompts, through adapters", "llmcli finetune -m gpt2 --data qa.jsonl --lora 8 --output runs/qa"),
        ("a classifier of labelled texts", "llmcli finetune --task classify --data reviews.jsonl --output runs/mood"),
        ("go on after a stop", "llmcli finetune --data notes/ --output runs/notes --resume auto"),
    ],
)
@click.argument("files", nargs=-1, metavar="[FILES]...")
@option("--data", multiple=True, metavar="PATH", help="A .txt or .jsonl file, a directory, or '-'; FILES are more.")
@option("--val", multiple=True, metavar="PATH", help="Validation data, instead of a part of --data.")
@option("--val-fraction", type=Number(0, 0.5), default=0.05, help="Hold out this share of the data.")
@option(
    "--task",
    type=click.Choice(["lm", "classify"]),
    default="lm",
    help="Learn text, or the labels of texts with a head on the last token.",
)
@option("--lora", type=click.IntRange(1), metavar="RANK", help="Train adapters of this rank and merge them.")
@option("--lora-alpha", type=Number(0, min_open=True), help="Adapters count alpha / RANK. [default: twice the rank]")
@option("--lora-targets", metavar="NAMES", help="Layers to adapt, such as c_attn,c_proj. [default: all in the blocks]")
@option(
    "--token-dropout",
    type=Number(0, 1, max_open=True),
    default=0.0,
    metavar="SHARE",
    help="Leave out this share of each text's tokens, others in every epoch, with --task classify.",
)
@option("--epochs", type=Number(0, min_open=True), default=3.0, help="Passes over the data.")
@recipe_options(
    iters=None,
    iters_help="Optimizer steps, instead of --epochs.",
    batch_size=8,
    lr=None,
    lr_help=f"Highest learning rate. [default: {RATE:g}, with --lora {LORA_RATE:g}]",
    weight_decay=0.01,
    ctx_help="Tokens in a row, at most. [default: all the model reads, at most 1024]",
)
@run_options
@seed_option
@model_options
@verbosity_options
def command(
    files: tuple[str, ...],
    data: tuple[str, ...],
    val: tuple[str, ...],
    val_fraction: float,
    task: str,
    run: Run,
    choice: ModelChoice,
    **flags: Any,
) -> None:
    """Go on training a model; --output becomes a model directory with plain weights.

    The data are whole texts (.txt, or JSONL with "text"), or examples in JSONL: "prompt" and "completion", of which
    the completion is learned, or "messages", of which the assistant's are. With --task classify they are "text" and
    "label", and the result is a model for 'llmcli classify'. A model with an encoder, such as T5, learns to answer
    a "prompt" with its "completion".
    """
    if not (data or files):
        raise InputError("expected examples or text, got none; pass --data PATH, or '-' for standard input")
    if task == "classify" and run.sample_every:
        raise InputError("--sample-every: expected --task lm, got a classifier, which writes no text")
    if task == "lm" and flags["token_dropout"]:
        raise InputError("--token-dropout: expected --task classify, got lm, which learns every token that it reads")
    from llmcli.hub import DEFAULT
    from llmcli.training import memory

    choice.prepare(training=True, largest=memory.of_directory(Path(choice.model) if choice.model else DEFAULT))
    learning.check_processes(run, (*data, *files, *val))
    from llmcli.training import distributed, finetuning
    from llmcli.training.trainer import Trainer

    adapters = adapters_of(flags)
    records, val_records = list(learning.records((*data, *files))), list(learning.records(val))
    loaded = load(choice, KINDS[task], flags["dropout"])
    finetuning.check_output(Path(run.output), loaded)
    lessons = (material.classes if task == "classify" else material.language)(
        loaded, records, val_records, val_fraction, flags | {"token_cache": run.token_cache}
    )
    began = finetuning.origin(loaded, task, adapters, lessons.labels)
    start = run.start()
    if start is not None:
        finetuning.check_origin(start, began)
    per_step = flags["batch_size"] * flags["grad_accum"]
    flags["lr"] = flags["lr"] or (RATE if adapters is None else LORA_RATE)
    dtype = learning.PRECISIONS[choice.dtype]
    recipe = learning.recipe(
        flags,
        iters=flags["iters"] or math.ceil(flags["epochs"] * lessons.batches.per_epoch / per_step),
        ctx_size=lessons.ctx_size,
        dtype=dtype,
    )

    def make(decoder: Any, team: Team | None = None) -> Trainer:
        model, export = finetuning.prepare(decoder, adapters, lessons.labels, flags["seed"])
        return Trainer(model, lessons.batches, recipe, export=export, team=team)

    if run.verify_resume:
        return learning.verify_resume(lambda: make(copy.deepcopy(loaded.model)), run)
    with distributed.join(run.sharding, next(loaded.model.parameters()).device) as team:
        trainer = make(loaded.model, team)
        if start is not None:
            trainer.restore(start)
        learning.announce(trainer, lessons.amount)
        evaluate: Callable[[], Any] | None = None
        if lessons.validation is not None:
            evaluate = functools.partial(trainer.evaluate, lessons.validation)
            if lessons.labels is not None:
                evaluate = functools.partial(finetuning.evaluate_classes, trainer, lessons.validation, lessons.labels)
        learning.follow(
            trainer,
            finetuning.files(loaded, began, dtype, lessons.template),
            run,
            kind="finetune",
            evaluate=evaluate,
            describe=learning.loss_in_words if lessons.labels is None else figures_in_words,
            table=None if lessons.labels is None else lambda evaluation: classes.table(evaluation.val_figures),
            sample=watching.sampler(trainer, loaded.tokenizer, run.sample_prompt) if run.sample_every else None,
        )


def adapters_of(flags: dict[str, Any]) -> LoRA | None:
    """The adapters that the flags ask for; flags about adapters without --lora are an InputError."""
    from llmcli.training.lora import LoRA

    rank, alpha = flags["lora"], flags["lora_alpha"]
    if rank is None:
        if alpha is not None or flags["lora_targets"] is not None:
            raise InputError("expected --lora RANK with --lora-alpha or --lora-targets, got none")
        return None
    targets = [name.strip() for name in (flags["lora_targets"] or "").split(",")]
    return LoRA(rank, alpha or 2.0 * rank, tuple(name for name in targets if name))


def load(choice: ModelChoice, kinds: Sequence[str], dropout: float) -> Loaded:
    """The model to begin from, with progress."""
    from llmcli.training import distributed, finetuning

    quiet_hub()
    with Progress("loading weights", unit="B") as progress:
        return finetuning.load(
            choice.model or "default",
            kinds=kinds,
            device=distributed.device(choice.device),
            dropout=dropout,
            offline=choice.offline,
            progress=progress,
        )


def figures_in_words(evaluation: ClassEvaluation) -> str:
    """The figures of a validation in a line."""
    return (
        f"validation loss {evaluation.val_loss:.4f}, accuracy {100 * evaluation.val_accuracy:.2f} %, "
        f"macro F1 {evaluation.val_macro_f1:.4f}"
    )
