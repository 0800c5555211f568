"""`llmcli finetune`: a model and examples in, a better model directory out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import learning, terminal
from llmcli.commands.learning import Run, recipe_options, run_options
from llmcli.commands.options import ModelChoice, Number, define, model_options, option, seed_option, verbosity_options
from llmcli.commands.progress import Progress, quiet_hub
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.batches import HeldOut, Rows, Windows
    from llmcli.chat_template import ChatTemplate
    from llmcli.finetuning import ClassEvaluation
    from llmcli.loading import Loaded
    from llmcli.lora import LoRA

RATE, LORA_RATE = 3e-4, 2e-3
FIGURES = ("precision", "recall", "f1")


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
    "label", and the result is a model for 'llmcli classify'.
    """
    if not (data or files):
        raise InputError("expected examples or text, got none; pass --data PATH, or '-' for standard input")
    choice.prepare(training=True)
    from llmcli import finetuning, training

    adapters = adapters_of(flags)
    records, val_records = list(learning.records((*data, *files))), list(learning.records(val))
    loaded = load(choice, flags["dropout"])
    finetuning.check_output(Path(run.output), loaded)
    material = (classes if task == "classify" else language)(loaded, records, val_records, val_fraction, flags)
    began = finetuning.origin(loaded, task, adapters, material.labels)
    start = run.start()
    if start is not None:
        finetuning.check_origin(start, began)
    per_step = flags["batch_size"] * flags["grad_accum"]
    flags["lr"] = flags["lr"] or (RATE if adapters is None else LORA_RATE)
    dtype = learning.PRECISIONS[choice.dtype]
    recipe = learning.recipe(
        flags,
        iters=flags["iters"] or math.ceil(flags["epochs"] * material.batches.per_epoch / per_step),
        ctx_size=material.ctx_size,
        dtype=dtype,
    )
    model, export = finetuning.prepare(loaded.model, adapters, material.labels, flags["seed"])
    trainer = training.Trainer(model, material.batches, recipe, export=export)
    if start is not None:
        trainer.restore(start)
    learning.announce(trainer, material.amount)
    evaluate: Callable[[], Any] | None = None
    if material.validation is not None:
        evaluate = functools.partial(trainer.evaluate, material.validation)
        if material.labels is not None:
            evaluate = functools.partial(finetuning.evaluate_classes, trainer, material.validation, material.labels)
    learning.follow(
        trainer,
        finetuning.files(loaded, began, dtype, material.template),
        run,
        kind="finetune",
        evaluate=evaluate,
        describe=learning.loss_in_words if material.labels is None else figures_in_words,
        table=None if material.labels is None else figures_as_table,
    )


@dataclass(frozen=True)
class Material:
    """What is learned: training rows, a validation, and the template that made text of messages."""

    batches: Windows | Rows
    validation: HeldOut | None
    ctx_size: int
    amount: str
    template: ChatTemplate | None = None
    labels: list[str] | None = None


def adapters_of(flags: dict[str, Any]) -> LoRA | None:
    """The adapters that the flags ask for; flags about adapters without --lora are an InputError."""
    from llmcli.lora import LoRA

    rank, alpha = flags["lora"], flags["lora_alpha"]
    if rank is None:
        if alpha is not None or flags["lora_targets"] is not None:
            raise InputError("expected --lora RANK with --lora-alpha or --lora-targets, got none")
        return None
    targets = [name.strip() for name in (flags["lora_targets"] or "").split(",")]
    return LoRA(rank, alpha or 2.0 * rank, tuple(name for name in targets if name))


def load(choice: ModelChoice, dropout: float) -> Loaded:
    """The model to begin from, with progress."""
    from llmcli import finetuning

    quiet_hub()
    with Progress("loading weights", unit="B") as progress:
        return finetuning.load(
            choice.model or "default",
            device=choice.device,
            dropout=dropout,
            offline=choice.offline,
            progress=progress,
        )


def language(
    loaded: Loaded,
    records: list[tuple[str, Any]],
    val_records: list[tuple[str, Any]],
    val_fraction: float,
    flags: dict[str, Any],
) -> Material:
    """Texts alone become one stream; with examples among them, everything becomes rows."""
    from llmcli import batches, data, examples, finetuning

    template: ChatTemplate | None = None

    def spans() -> examples.Spans:
        nonlocal template
        template = template or finetuning.template(loaded)
        return template.spans

    lessons, held = ([examples.lesson(one, name, spans) for name, one in some] for some in (records, val_records))
    ctx_size = finetuning.context(loaded, flags["ctx_size"])
    documents = [lesson for lesson in lessons if isinstance(lesson, data.Document)]
    held_documents = [lesson for lesson in held if isinstance(lesson, data.Document)]
    validation = None
    if len(documents) == len(lessons) and len(held_documents) == len(held):
        if not val_records:
            documents, held_documents = data.split(documents, val_fraction)
        stream = learning.encode(loaded.tokenizer, documents)
        ctx_size = max(1, min(ctx_size, len(stream) // 2))  # of a short text, two windows
        if held_documents:
            n_bytes = sum(document.n_bytes for document in held_documents)
            validation = batches.held_out(learning.encode(loaded.tokenizer, held_documents), ctx_size, n_bytes)
        windows = batches.Windows(stream, ctx_size, flags["seed"])
        return Material(windows, validation, ctx_size, f"{len(stream) / 1e6:.2f} M training tokens")
    if not val_records:
        lessons, held = finetuning.hold_out(lessons, val_fraction, flags["seed"])
    rows = learning.encode_examples(loaded.tokenizer, lessons, ctx_size)
    if held:
        n_bytes = sum(lesson.n_bytes for lesson in held)
        validation = batches.held_out_rows(learning.encode_examples(loaded.tokenizer, held, ctx_size), n_bytes)
    every = batches.Rows(rows, flags["seed"])
    return Material(every, validation, ctx_size, f"{len(rows)} training examples", template)


def classes(
    loaded: Loaded,
    records: list[tuple[str, Any]],
    val_records: list[tuple[str, Any]],
    val_fraction: float,
    flags: dict[str, Any],
) -> Material:
    """Texts with labels, whose last token is taught the label."""
    from llmcli import batches, classification, examples, finetuning

    given, held = ([examples.labelled(one, name) for name, one in some] for some in (records, val_records))
    if not val_records:
        given, held = finetuning.hold_out(given, val_fraction, flags["seed"])
    labels = finetuning.label_names(given, held)
    ctx_size = finetuning.context(loaded, flags["ctx_size"])

    def rows(some: list[examples.Labelled]) -> list[batches.Row]:
        ids, n_cut = classification.encode(loaded.tokenizer, [one.text for one in some], ctx_size)
        if n_cut:
            terminal.note(f"{n_cut} of {len(some)} texts lost their end: over {ctx_size} tokens")
        return finetuning.class_rows(ids, [labels.index(one.label) for one in some])

    validation = batches.held_out_rows(rows(held), sum(len(one.text.encode()) for one in held)) if held else None
    every = batches.Rows(rows(given), flags["seed"])
    amount = f"{len(given)} training texts of {len(labels)} classes"
    return Material(every, validation, ctx_size, amount, labels=labels)


def figures_in_words(evaluation: ClassEvaluation) -> str:
    """The figures of a validation in a line."""
    return (
        f"validation loss {evaluation.val_loss:.4f}, accuracy {100 * evaluation.val_accuracy:.2f} %, "
        f"macro F1 {evaluation.val_macro_f1:.4f}"
    )


def figures_as_table(evaluation: ClassEvaluation) -> str:
    """A row per class with its part of the confusion matrix, and a row of means."""
    found = evaluation.val_figures
    rows = [
        [label, *(f"{one[key]:.4f}" for key in FIGURES), str(int(one["support"])), *map(str, found.confusion[number])]
        for number, (label, one) in enumerate(found.classes.items())
    ]
    support = str(sum(int(one["support"]) for one in found.classes.values()))
    rows.append(["macro", *(f"{found.macro[key]:.4f}" for key in FIGURES), support, *[""] * len(found.labels)])
    header = ["class", *FIGURES, "texts", *(f"as {label}" for label in found.labels)]
    return terminal.table(header, rows, right=range(1, len(header)))
