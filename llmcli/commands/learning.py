"""What `train` and `finetune` share: the flags of a recipe and of a run, reading, tokenising, the loop that reports.

Knows click and terminals; must not import torch before a command runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal
from llmcli.commands.options import Number, gather, option
from llmcli.commands.parameters import Function
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from llmcli.batches import Row
    from llmcli.data import Document
    from llmcli.examples import Example
    from llmcli.recipe import Recipe
    from llmcli.tokenizer import Tokenizer
    from llmcli.training import Evaluation, Trainer

SCHEDULES = ("cosine", "linear", "wsd")
PRECISIONS = {"auto": "float32"} | {name: name for name in ("float32", "bfloat16", "float16")}


def recipe_options(
    *,
    iters: int | None,
    iters_help: str,
    batch_size: int,
    lr: float | None,
    lr_help: str,
    weight_decay: float,
    ctx_help: str,
) -> Callable[[Function], Function]:
    """Add the flags that `recipe` reads, each passed under its own name; the defaults are the command's."""
    flags = (
        option("--iters", type=click.IntRange(1), default=iters, help=iters_help),
        option("--batch-size", type=click.IntRange(1), default=batch_size, help="Rows in a batch."),
        option("--grad-accum", type=click.IntRange(1), default=1, help="Batches in a step."),
        option("-c", "--ctx-size", type=click.IntRange(1), metavar="N", help=ctx_help),
        option("--lr", type=Number(0, min_open=True), default=lr, help=lr_help),
        option("--min-lr", type=Number(0), default=0.0, help="Learning rate at the end."),
        option(
            "--schedule",
            type=click.Choice(SCHEDULES),
            default="cosine",
            help="How the rate falls after the warm-up; wsd keeps it until --decay-steps before the end.",
        ),
        option(
            "--warmup-steps",
            type=click.IntRange(0),
            help="Steps of linear warm-up. [default: 100, or a tenth of all steps if that is less]",
        ),
        option(
            "--decay-steps",
            type=click.IntRange(0),
            help="Steps of linear decay at the end, with --schedule wsd. [default: a fifth of all steps]",
        ),
        option("--weight-decay", type=Number(0), default=weight_decay, help="Decay of matrices; others have none."),
        option(
            "--label-smoothing", type=Number(0, 1, max_open=True), default=0.0, help="Share spread over all tokens."
        ),
        option("--clip", type=Number(0), default=1.0, help="Largest gradient norm; 0 for no limit."),
        option("--dropout", type=Number(0, 1, max_open=True), default=0.0, help="Dropout of embeddings and residuals."),
        option(
            "--activation-checkpointing",
            is_flag=True,
            help="Compute a block's activations again in the backward pass: less memory, a third more work, same bits.",
        ),
    )

    def decorate(function: Function) -> Function:
        for flag in reversed(flags):
            function = flag(function)
        return function

    return decorate


def recipe(flags: dict[str, Any], *, iters: int, ctx_size: int, dtype: str) -> Recipe:
    """The recipe of the flags of `recipe_options` and of --seed. Raises InputError."""
    from llmcli.recipe import Recipe

    chosen = {name: flags[name] for name in Recipe.__dataclass_fields__ if name in flags}
    if flags["warmup_steps"] is None:
        chosen["warmup_steps"] = min(100, iters // 10)
    if flags["decay_steps"] is None:
        chosen["decay_steps"] = iters // 5 if flags["schedule"] == "wsd" else 0
    return Recipe(**{**chosen, "iters": iters, "ctx_size": ctx_size, "dtype": dtype})


@dataclass(frozen=True)
class Run:
    """Where a run writes, how often, and where it continues: the flags of `run_options`."""

    output: str
    resume: str | None
    log: str | None
    json: bool
    eval_every: int
    save_every: int

    def start(self) -> Path | None:
        """The directory of the checkpoint to continue from; None for a new run."""
        from llmcli.training import STATE

        if self.resume is None or (self.resume == "auto" and not (Path(self.output) / STATE).exists()):
            return None
        return Path(self.output if self.resume == "auto" else self.resume)


def run_options(function: Function) -> Function:
    """Add --output, --resume, --eval-every, --save-every, --log and --json; the command gets them as `run: Run`."""
    flags = (
        option("--eval-every", type=click.IntRange(1), default=250, metavar="N", help="Steps between validations."),
        option("--save-every", type=click.IntRange(1), default=250, metavar="N", help="Steps between checkpoints."),
        option("--output", required=True, metavar="DIR", help="Directory of the model."),
        option("--resume", metavar="auto|DIR", help="Continue from a checkpoint; auto is --output's, if there is one."),
        option("--log", metavar="FILE", help="Write every step and validation as JSONL."),
        option("--json", is_flag=True, help="Print the summary as JSON."),
    )
    return gather(function, Run, "run", flags)


def follow(
    trainer: Trainer,
    files: dict[str, str],
    run: Run,
    *,
    kind: str,
    evaluate: Callable[[], Any] | None,
    describe: Callable[[Any], str],
    table: Callable[[Any], str] | None = None,
) -> None:
    """Train to the end of the recipe or to Ctrl-C, with progress, log and checkpoints; then print the summary.

    `evaluate` makes a report, a dataclass with the field `step`, which `describe` puts into words; the last one is also
    shown as a `table` on stderr.
    """
    from llmcli import training

    began, resumed_at, step, evaluation = time.perf_counter(), trainer.steps_done, None, None
    iters = trainer.recipe.iters
    with terminal.interruptible() as interrupt:
        with Progress("training", total=iters, unit="steps") as progress, open_log(run.log) as journal:
            for report in training.run(
                trainer,
                Path(run.output),
                files,
                evaluate=evaluate,
                eval_every=run.eval_every,
                save_every=run.save_every,
            ):
                journal(asdict(report))
                if isinstance(report, training.Step):
                    step = report
                    progress(report.step, note=f"loss {report.loss:.3f}, {report.tokens_per_second:.0f} tokens/s")
                else:
                    evaluation = report
                    terminal.note(f"step {report.step}: {describe(report)}")
                if interrupt.stop_requested:
                    trainer.save(Path(run.output), files)
                    terminal.note(f"stopped after step {trainer.steps_done} of {iters}; saved in {run.output}")
                    break
        if table is not None and evaluation is not None:
            terminal.note(table(evaluation).rstrip())
        summary = {
            "schema": f"llmcli/{kind}/1",
            "output": run.output,
            "n_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "n_trained_parameters": sum(master.numel() for master in trainer.masters),
            "n_tokens": trainer.tokens_read,
            "seconds": time.perf_counter() - began,
            **(asdict(step) if step else {}),
            **(asdict(evaluation) if evaluation else {}),
            "step": trainer.steps_done,
            "n_steps": trainer.steps_done - resumed_at,
            "finish_reason": "interrupt" if interrupt.stop_requested else "stop",
            "recipe": asdict(trainer.recipe),
        }
        with terminal.open_output() as stdout:
            words = f", {describe(evaluation)}" if evaluation else ""
            stdout.write(
                terminal.to_json(summary)
                if run.json
                else f"{run.output}: {summary['n_parameters'] / 1e6:.2f} M parameters, {summary['step']} steps, "
                f"{summary['n_tokens'] / 1e6:.2f} M tokens, {summary['seconds']:.0f} s{words}\n"
            )


def announce(trainer: Trainer, data: str) -> None:
    """One line on stderr before the first step: what is trained on what."""
    import torch

    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = sum(master.numel() for master in trainer.masters)
    share = f", {trained / 1e6:.2f} M of them trained" if trained < total else ""
    terminal.note(
        f"{total / 1e6:.2f} M parameters{share}, {data}, {trainer.recipe.iters} steps of "
        f"{trainer.recipe.rows_per_step} rows of at most {trainer.recipe.ctx_size} tokens, "
        f"{torch.get_num_threads()} threads"
    )


def loss_in_words(evaluation: Evaluation) -> str:
    """The loss of a validation for people."""
    return f"validation loss {evaluation.val_loss:.4f}, {evaluation.val_bits_per_byte:.4f} bits per byte"


def records(paths: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(name, text or JSON object) of files, directories and '-', which is JSONL when it begins with '{'."""
    from llmcli import examples

    for path in paths:
        if path == "-":
            text = terminal.read_text("-")
            yield from examples.split(text, "standard input", jsonl=text.lstrip()[:1] == "{")
        else:
            yield from examples.read(path)


def documents(paths: tuple[str, ...]) -> list[Document]:
    """The whole texts in files, directories and '-'. Raises InputError for examples."""
    from llmcli import examples
    from llmcli.data import Document

    found = []
    for name, record in records(paths):
        lesson = examples.lesson(record, name, lambda: lambda messages: [])
        if not isinstance(lesson, Document):
            raise InputError(f"{name}: train learns whole texts, expected text; examples are for 'llmcli finetune'")
        found.append(lesson)
    return found


def encode(tokenizer: Tokenizer, documents: list[Document]) -> Tensor:
    """The documents as one stream of ids, with progress."""
    import torch

    from llmcli import data as texts

    parts, done = [], 0
    with Progress("tokenising", total=sum(len(doc.text) for doc in documents), unit="characters") as progress:
        for n_characters, ids in texts.encode(tokenizer, documents):
            parts.append(ids)
            done += n_characters
            progress(done)
    return torch.cat(parts)


@contextlib.contextmanager
def open_log(path: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends one line of JSONL at once; it does nothing without a path."""
    if path is None:
        yield lambda document: None
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        yield lambda document: print(terminal.to_json(document, indent=None), end="", file=file)


def encode_examples(
    tokenizer: Tokenizer, lessons: Sequence[Document | Example], ctx_size: int, start_id: int | None = None
) -> list[Row]:
    """Examples and documents as rows, with progress, and a word about those that are too long.

    start_id is that of a model which answers prompts.
    """
    from llmcli import examples

    rows, done, shortened = [], 0, 0
    with Progress("tokenising", total=len(lessons), unit="examples") as progress:
        for n_lessons, some, n_shortened in examples.encode(tokenizer, lessons, ctx_size, start_id):
            rows += some
            done += n_lessons
            shortened += n_shortened
            progress(done)
    if shortened:
        lost = "beginning" if start_id is None else "end"
        terminal.note(f"{shortened} of {len(lessons)} examples lost their {lost}: over {ctx_size} tokens")
    return rows
