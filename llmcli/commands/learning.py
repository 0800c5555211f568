"""What `train` and `finetune` share: the flags of a recipe and of a run, reading, tokenising, the loop that reports.

Knows click and terminals; must not import torch before a command runs.
"""

from __future__ import annotations

import contextlib
import functools
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
from llmcli.commands.watching import Journal, Speed, open_journal
from llmcli.errors import GateFailed, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from llmcli.data.batches import Row, Shards
    from llmcli.data.corpus import Document
    from llmcli.data.examples import Example
    from llmcli.tokenizer import Tokenizer
    from llmcli.training.recipe import Recipe
    from llmcli.training.trainer import Evaluation, Trainer

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
        option(
            "--skip-spikes",
            type=Number(0),
            default=0.0,
            metavar="DEVIATIONS",
            help="Leave out a step whose loss is so many standard deviations above the last 64; 0 for never.",
        ),
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
    from llmcli.training.recipe import Recipe

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
    sample_every: int | None
    sample_prompt: str
    tensorboard: str | None
    verify_resume: int | None
    token_cache: str | None
    sharding: str

    def journal(self, start: Path | None) -> contextlib.AbstractContextManager[Journal]:
        """The run's log, its own directory's begun anew unless it continues, and TensorBoard."""
        from llmcli.training.curves import LOG

        log = Path(self.output) / LOG if self.log is None else Path(self.log)
        return open_journal(log, anew=self.log is None and start is None, tensorboard=self.tensorboard)

    def start(self) -> Path | None:
        """The directory of the checkpoint to continue from; None for a new run."""
        from llmcli.training.checkpoint import resumable

        if self.resume is None or (self.resume == "auto" and not resumable(Path(self.output))):
            return None
        return Path(self.output if self.resume == "auto" else self.resume)


def run_options(function: Function) -> Function:
    """Add --output, --resume, --log and the others of `Run`; the command gets them as `run: Run`."""
    flags = (
        option("--eval-every", type=click.IntRange(1), default=250, metavar="N", help="Steps between validations."),
        option("--save-every", type=click.IntRange(1), default=250, metavar="N", help="Steps between checkpoints."),
        option("--output", required=True, metavar="DIR", help="Directory of the model."),
        option("--resume", metavar="auto|DIR", help="Continue from a checkpoint; auto is --output's, if there is one."),
        option("--log", metavar="FILE", help="Append steps, validations and samples as JSONL. [default: in --output]"),
        option("--sample-every", type=click.IntRange(1), metavar="N", help="Steps between samples of what it writes."),
        option("--sample-prompt", default="", metavar="TEXT", help="What samples begin with. [default: nothing]"),
        option("--tensorboard", metavar="DIR", help="Show the log's figures in TensorBoard, too."),
        option(
            "--token-cache",
            metavar="DIR|off",
            help="Keep tokens here for the next run. [default: ~/.cache/llmcli/tokens, for 4 MB of text or more]",
        ),
        option(
            "--verify-resume",
            type=click.IntRange(2),
            metavar="N",
            help="Only train N steps twice, straight and stopped in the middle; exit 3 where the weights differ.",
        ),
        option(
            "--sharding",
            type=click.Choice(["none", "full"]),
            default="none",
            help="Under torchrun: every process has all weights, or only its part of weights and optimizer.",
        ),
        option("--json", is_flag=True, help="Print the summary as JSON."),
    )
    return gather(function, Run, "run", flags)


def check_processes(run: Run, paths: Sequence[str]) -> None:
    """Among the processes that torchrun started, let only the first speak; of mistakes, the first of each machine.

    Raises InputError for what only one process can do.
    """
    import os

    from llmcli.training import distributed

    if (n_processes := distributed.launched()) == 1:
        return
    meta = click.get_current_context().meta
    meta["quiet"] = meta.get("quiet") or os.environ["RANK"] != "0"
    meta["same_everywhere"] = os.environ["LOCAL_RANK"] != "0"
    if "-" in paths:
        raise InputError(f"expected files for {n_processes} processes, got '-': only one can read standard input")
    if run.verify_resume:
        raise InputError(f"--verify-resume: expected one process, got {n_processes}; run it without torchrun")


def follow(
    trainer: Trainer,
    files: dict[str, str],
    run: Run,
    *,
    kind: str,
    evaluate: Callable[[], Any] | None,
    describe: Callable[[Any], str],
    table: Callable[[Any], str] | None = None,
    sample: Callable[[int], str] | None = None,
) -> None:
    """Train to the end of the recipe or to Ctrl-C, with progress, log and checkpoints; then print the summary.

    `evaluate` makes a report, a dataclass with the field `step`, which `describe` puts into words; the last one is also
    shown as a `table` on stderr. `sample` writes text after a given step.
    """
    from llmcli.training import checkpoint
    from llmcli.training.trainer import Step
    from llmcli.training.trainer import run as run_steps

    began, resumed_at, step, evaluation = time.perf_counter(), trainer.steps_done, None, None
    iters, speed, team = trainer.recipe.iters, Speed(trainer), trainer.team
    alone = checkpoint.alone(Path(run.output)) if team.leads else contextlib.nullcontext()
    with terminal.interruptible() as interrupt:
        log = run.journal(run.start()) if team.leads else contextlib.nullcontext(lambda document: None)
        with alone, Progress("training", total=iters, unit="steps") as progress, log as journal:
            for report in run_steps(
                trainer,
                Path(run.output),
                files,
                evaluate=evaluate,
                eval_every=run.eval_every,
                save_every=run.save_every,
            ):
                journal(asdict(report))
                if isinstance(report, Step):
                    step = report
                    if report.skipped:
                        terminal.note(f"step {report.step}: loss {report.loss:.4f} is a spike; its update is left out")
                    progress(report.step, note=functools.partial(speed, report))
                    if sample and run.sample_every and (report.step % run.sample_every == 0 or report.step == iters):
                        text = sample(report.step)
                        journal({"step": report.step, "prompt": run.sample_prompt, "sample": text})
                        terminal.note(f"step {report.step} writes: {run.sample_prompt}{text}")
                else:
                    evaluation = report
                    terminal.note(f"step {report.step}: {describe(report)}")
                interrupt.stop_requested = any(team.gather(interrupt.stop_requested))
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
            "n_skipped": trainer.skipped,
            "finish_reason": "interrupt" if interrupt.stop_requested else "stop",
            "recipe": asdict(trainer.recipe),
        }
        if not team.leads:
            return
        with terminal.open_output() as stdout:
            words = f", {describe(evaluation)}" if evaluation else ""
            stdout.write(
                terminal.to_json(summary)
                if run.json
                else f"{run.output}: {summary['n_parameters'] / 1e6:.2f} M parameters, {summary['step']} steps, "
                f"{summary['n_tokens'] / 1e6:.2f} M tokens, {summary['seconds']:.0f} s{words}\n"
            )


def verify_resume(make: Callable[[], Trainer], run: Run) -> None:
    """Train `--verify-resume` steps twice, without touching --output. Raises GateFailed where the weights differ."""
    import tempfile

    from llmcli.training.trainer import verify_resume

    steps = run.verify_resume or 0
    with tempfile.TemporaryDirectory() as folder:
        straight, resumed = verify_resume(make, steps, Path(folder))
    document = {
        "schema": "llmcli/verify-resume/1",
        "steps": steps,
        "stopped_at": steps // 2,
        "sha256_straight": straight,
        "sha256_resumed": resumed,
        "equal": straight == resumed,
    }
    with terminal.open_output() as stdout:
        words = f"weights after {steps} steps straight {straight}\nstopped at step {steps // 2} and resumed {resumed}\n"
        stdout.write(terminal.to_json(document) if run.json else words)
    if straight != resumed:
        raise GateFailed(
            f"expected the same weights after {steps} steps, straight and resumed, got {straight[:12]} and "
            f"{resumed[:12]}; with --dropout they depend on --threads"
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
        f"{torch.get_num_threads()} threads" + (f" in each of {n} processes" if (n := trainer.team.size) > 1 else "")
    )


def loss_in_words(evaluation: Evaluation) -> str:
    """The loss of a validation for people."""
    return f"validation loss {evaluation.val_loss:.4f}, {evaluation.val_bits_per_byte:.4f} bits per byte"


def records(paths: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(name, text or JSON object) of files, directories and '-', which is JSONL when it begins with '{'."""
    from llmcli.data import examples

    for path in paths:
        if path == "-":
            text = terminal.read_text("-")
            yield from examples.split(text, "standard input", jsonl=text.lstrip()[:1] == "{")
        else:
            yield from examples.read(path)


def documents(paths: tuple[str, ...]) -> list[Document]:
    """The whole texts in files, directories and '-'. Raises InputError for examples."""
    from llmcli.data import examples
    from llmcli.data.corpus import Document

    found = []
    for name, record in records(paths):
        lesson = examples.lesson(record, name, lambda: lambda messages: [])
        if not isinstance(lesson, Document):
            raise InputError(f"{name}: train learns whole texts, expected text; examples are for 'llmcli finetune'")
        found.append(lesson)
    return found


def encode(tokenizer: Tokenizer, documents: list[Document], cache: str | None = None) -> Tensor | Shards:
    """The documents as one stream of ids, with progress; `cache` is --token-cache, whose use stderr tells."""
    from llmcli.data import token_cache

    total = sum(len(doc.text) for doc in documents)
    folder = Path(cache) if cache else token_cache.default_folder() if total >= token_cache.WORTH_IT else None
    with Progress("tokenising", total=total, unit="characters") as progress:
        stream, outcome = token_cache.encode(tokenizer, documents, None if cache == "off" else folder, progress)
    for problem in outcome.problems:
        terminal.note(f"warning: {problem}")
    if outcome.reused:
        new = f", {outcome.written} new" if outcome.written else ""
        terminal.note(f"tokens of an earlier run from {folder}: {outcome.reused} shards{new}")
    return stream


def encode_examples(
    tokenizer: Tokenizer, lessons: Sequence[Document | Example], ctx_size: int, start_id: int | None = None
) -> list[Row]:
    """Examples and documents as rows, with progress, and a word about those that are too long.

    start_id is that of a model which answers prompts.
    """
    from llmcli.data import examples

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
