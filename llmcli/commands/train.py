"""`llmcli train`: text files in, a model directory out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal
from llmcli.commands.options import Engine, Number, define, engine_options, option, seed_option, verbosity_options
from llmcli.commands.progress import Progress
from llmcli.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from llmcli.data import Document
    from llmcli.tokenizer import Tokenizer

PRESETS: dict[str, dict[str, int]] = {
    "gpt2-nano": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt2-micro": {"n_embd": 256, "n_layer": 6, "n_head": 4, "n_positions": 512},
    "gpt2-mini": {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 512},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024},
}
DTYPES = {"auto": "float32"} | {name: name for name in ("float32", "bfloat16", "float16")}


@define(
    "train",
    examples=[
        ("a small model on your own texts", "llmcli train --data notes/*.txt --iters 2000 --output runs/notes"),
        ("write with it", 'llmcli generate -m runs/notes "Dear"'),
        (
            "text through a pipe, a larger model",
            "cat *.txt | llmcli train --data - --preset gpt2-mini --output runs/mini",
        ),
    ],
    help="Train a GPT-2 model from scratch on text; --output becomes a model directory.",
)
@click.argument("files", nargs=-1, metavar="[FILES]...")
@option("--data", multiple=True, metavar="PATH", help="A text file, a directory of *.txt, or '-'; FILES are more.")
@option("--val", multiple=True, metavar="PATH", help="Validation text, instead of a part of --data.")
@option("--val-fraction", type=Number(0, 0.5), default=0.02, help="Hold out this last part of every file.")
@option("--preset", type=click.Choice(list(PRESETS)), default="gpt2-micro", help="The model's shape.")
@option("--config", metavar="FILE", help="Take the shape from a config.json instead.")
@option("--vocab-size", type=click.IntRange(257), default=4096, help="Entries of the tokenizer that is trained first.")
@option("--tokenizer", metavar="DIR", help="Use the tokenizer in this directory instead.")
@option("--iters", type=click.IntRange(1), default=1000, help="Optimizer steps.")
@option("--batch-size", type=click.IntRange(1), default=8, help="Windows in a batch.")
@option("--grad-accum", type=click.IntRange(1), default=1, help="Batches in a step.")
@option("-c", "--ctx-size", type=click.IntRange(1), metavar="N", help="Tokens in a window. [default: the shape's]")
@option("--lr", type=Number(0, min_open=True), default=1e-3, help="Highest learning rate.")
@option("--min-lr", type=Number(0), default=0.0, help="Learning rate at the end of the cosine.")
@option("--warmup-steps", type=click.IntRange(0), default=100, help="Steps of linear warm-up.")
@option("--weight-decay", type=Number(0), default=0.1, help="Decay of matrices; norms and biases have none.")
@option("--clip", type=Number(0), default=1.0, help="Largest gradient norm; 0 for no limit.")
@option("--dropout", type=Number(0, 1, max_open=True), default=0.0, help="Dropout of embeddings and residuals.")
@option("--eval-every", type=click.IntRange(1), default=250, metavar="N", help="Steps between validations.")
@option("--save-every", type=click.IntRange(1), default=250, metavar="N", help="Steps between checkpoints.")
@option("--output", required=True, metavar="DIR", help="Directory of the model.")
@option("--resume", metavar="auto|DIR", help="Continue from a checkpoint; auto is --output's, if there is one.")
@option("--log", metavar="FILE", help="Write every step and validation as JSONL.")
@option("--json", is_flag=True, help="Print the summary as JSON.")
@seed_option
@engine_options
@verbosity_options
def command(
    files: tuple[str, ...],
    data: tuple[str, ...],
    val: tuple[str, ...],
    val_fraction: float,
    output: str,
    resume: str | None,
    log: str | None,
    json: bool,
    eval_every: int,
    save_every: int,
    engine: Engine,
    **flags: Any,
) -> None:
    """Read, tokenise, train, report."""
    engine.prepare(training=True)
    import torch

    from llmcli import data as texts
    from llmcli import loading, training
    from llmcli.tokenizer import Tokenizer

    start = Path(output if resume == "auto" else resume) if resume is not None else None
    if resume == "auto" and not (Path(output) / training.STATE).exists():
        start = None
    if not (data or files):
        raise InputError("expected training text, got none; pass --data PATH, or '-' for standard input")
    documents, held = read((*data, *files)), read(val)
    if not val:
        documents, held = texts.split(documents, val_fraction)
    known = start or flags["tokenizer"]
    tokenizer = Tokenizer.open(known) if known else texts.train_tokenizer(documents, flags["vocab_size"])
    described = start / "config.json" if start else flags["config"]
    shape = read_shape(str(described)) if described else PRESETS[flags["preset"]]
    model, config = training.build(
        {"vocab_size": tokenizer.vocab_size, **shape, "dtype": DTYPES[engine.dtype]},
        tokenizer,
        ctx_size=flags["ctx_size"],
        dropout=flags["dropout"],
        seed=flags["seed"],
    )
    recipe = training.Recipe(
        ctx_size=config["n_positions"],
        dtype=DTYPES[engine.dtype],
        **{name: flags[name] for name in training.Recipe.__dataclass_fields__ if name not in ("ctx_size", "dtype")},
    )
    stream = encode(tokenizer, documents)
    validation = (encode(tokenizer, held), sum(doc.n_bytes for doc in held)) if held else None
    windows = training.Windows(stream, recipe.ctx_size, recipe.seed)
    trainer = training.Trainer(model.to(loading.choose_device(engine.device)), windows, recipe)
    if start is not None:
        trainer.restore(start)
    beside = texts.side_files(tokenizer, config)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    terminal.note(
        f"{n_parameters / 1e6:.2f} M parameters, {len(stream) / 1e6:.2f} M training tokens, "
        f"{recipe.iters} steps of {recipe.tokens_per_step} tokens, {torch.get_num_threads()} threads"
    )
    began, resumed_at, step, evaluation = time.perf_counter(), trainer.steps_done, None, None
    with terminal.interruptible() as interrupt:
        with Progress("training", total=recipe.iters, unit="steps") as progress, open_log(log) as journal:
            for report in training.run(
                trainer, Path(output), beside, validation=validation, eval_every=eval_every, save_every=save_every
            ):
                journal(asdict(report))
                if isinstance(report, training.Evaluation):
                    evaluation = report
                    terminal.note(
                        f"step {report.step}: validation loss {report.val_loss:.4f}, "
                        f"{report.val_bits_per_byte:.4f} bits per byte"
                    )
                else:
                    step = report
                    progress(report.step, note=f"loss {report.loss:.3f}, {report.tokens_per_second:.0f} tokens/s")
                if interrupt.stop_requested:
                    trainer.save(Path(output), beside)
                    terminal.note(f"stopped after step {trainer.steps_done} of {recipe.iters}; saved in {output}")
                    break
        summary = {
            "schema": "llmcli/train/1",
            "output": output,
            "n_parameters": n_parameters,
            "n_tokens": (trainer.steps_done - resumed_at) * recipe.tokens_per_step,
            "seconds": time.perf_counter() - began,
            **(asdict(step) if step else {}),
            **(asdict(evaluation) if evaluation else {}),
            "step": trainer.steps_done,
            "finish_reason": "interrupt" if interrupt.stop_requested else "stop",
            "recipe": asdict(recipe),
        }
        with terminal.open_output() as stdout:
            stdout.write(terminal.to_json(summary) if json else describe(summary))


def read(paths: tuple[str, ...]) -> list[Document]:
    """The documents of files, directories and '-'."""
    from llmcli import data as texts

    documents = []
    for path in paths:
        if path == "-":
            documents.append(texts.document(terminal.read_text("-"), "standard input"))
        else:
            documents += texts.read_documents(path)
    return documents


def read_shape(path: str) -> dict[str, Any]:
    """A config.json; raises ModelError when it is not a JSON object."""
    try:
        shape = loads(terminal.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(shape, dict):
        raise ModelError(f"{path}: expected a JSON object; got {type(shape).__name__}")
    return shape


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
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        yield lambda document: print(terminal.to_json(document, indent=None), end="", file=file)


def describe(summary: dict[str, Any]) -> str:
    """The summary as one line of text."""
    validation = ""
    if "val_loss" in summary:
        validation = f", validation loss {summary['val_loss']:.4f} ({summary['val_bits_per_byte']:.4f} bits per byte)"
    return (
        f"{summary['output']}: {summary['n_parameters'] / 1e6:.2f} M parameters, {summary['step']} steps, "
        f"{summary['n_tokens'] / 1e6:.2f} M tokens, {summary['seconds']:.0f} s{validation}\n"
    )
