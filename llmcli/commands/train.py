"""`llmcli train`: text files in, a model directory out."""

from __future__ import annotations

import functools
from json import loads
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from llmcli.commands import learning, terminal, watching
from llmcli.commands.learning import Run, recipe_options, run_options
from llmcli.commands.options import Engine, Number, define, engine_options, option, seed_option, verbosity_options
from llmcli.errors import InputError, ModelError

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-nano": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt2-micro": {"n_embd": 256, "n_layer": 6, "n_head": 4, "n_positions": 512},
    "gpt2-mini": {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 512},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024},
    "lstm": {"model_type": "lstm", "n_embd": 512, "n_layer": 2, "n_positions": 256},
}


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
    help="Train a model from scratch on text; --output becomes a model directory.",
)
@click.argument("files", nargs=-1, metavar="[FILES]...")
@option("--data", multiple=True, metavar="PATH", help="A text, a JSONL of texts, a directory, or '-'; FILES are more.")
@option("--val", multiple=True, metavar="PATH", help="Validation text, instead of a part of --data.")
@option(
    "--val-fraction", type=Number(0, 0.5), default=0.02, help="Hold out so many of the documents, or the end of few."
)
@option("--preset", type=click.Choice(list(PRESETS)), default="gpt2-micro", help="The model's shape.")
@option("--config", metavar="FILE", help="Take the shape from a config.json instead.")
@option("--vocab-size", type=click.IntRange(257), default=4096, help="Entries of the tokenizer that is trained first.")
@option("--tokenizer", metavar="DIR", help="Use the tokenizer in this directory instead.")
@recipe_options(
    iters=1000,
    iters_help="Optimizer steps.",
    batch_size=8,
    lr=1e-3,
    lr_help="Highest learning rate.",
    weight_decay=0.1,
    ctx_help="Tokens in a row. [default: the shape's]",
)
@run_options
@seed_option
@engine_options
@verbosity_options
def command(
    files: tuple[str, ...],
    data: tuple[str, ...],
    val: tuple[str, ...],
    val_fraction: float,
    run: Run,
    engine: Engine,
    **flags: Any,
) -> None:
    """Read, tokenise, train, report."""
    engine.prepare(training=True, largest=largest_tensor(flags, run))
    learning.check_processes(run, (*data, *files, *val))
    from llmcli.data import batches, corpus
    from llmcli.device import choose_device
    from llmcli.tokenizer import Tokenizer
    from llmcli.training import distributed
    from llmcli.training.trainer import Trainer
    from llmcli.training.trainer import build as build_model

    start = run.start()
    if not (data or files):
        raise InputError("expected training text, got none; pass --data PATH, or '-' for standard input")
    documents, held = learning.documents((*data, *files)), learning.documents(val)
    if not val:
        documents, held = corpus.split(documents, val_fraction, flags["seed"])
    known = start or flags["tokenizer"]
    tokenizer = Tokenizer.open(known) if known else corpus.train_tokenizer(documents, flags["vocab_size"])
    shape = read_shape(flags["config"]) if flags["config"] else PRESETS[flags["preset"]]
    if start:
        shape, wanted = read_shape(str(start / "config.json")), shape
        if flags["config"] or click.get_current_context().get_parameter_source("preset") != ParameterSource.DEFAULT:
            check_shape(start, shape, wanted)
    dtype = learning.PRECISIONS[engine.dtype]
    build = functools.partial(
        build_model,
        {"vocab_size": tokenizer.vocab_size, **shape, "dtype": dtype},
        tokenizer,
        ctx_size=flags["ctx_size"],
        dropout=flags["dropout"],
        seed=flags["seed"],
    )
    model, config = build()
    recipe = learning.recipe(flags, iters=flags["iters"], ctx_size=model.config.n_positions, dtype=dtype)
    stream = learning.encode(tokenizer, documents, run.token_cache)
    windows = batches.Windows(stream, recipe.ctx_size, recipe.seed)
    device = choose_device(distributed.device(engine.device))
    if run.verify_resume:
        return learning.verify_resume(lambda: Trainer(build()[0].to(device), windows, recipe), run)
    with distributed.join(run.sharding, device) as team:
        trainer = Trainer(model.to(device), windows, recipe, team=team)
        if start is not None:
            trainer.restore(start)
        evaluate = None
        if held:
            n_bytes = sum(doc.n_bytes for doc in held)
            validation = batches.held_out(learning.encode(tokenizer, held, run.token_cache), recipe.ctx_size, n_bytes)
            evaluate = functools.partial(trainer.evaluate, validation)
        learning.announce(trainer, f"{len(stream) / 1e6:.2f} M training tokens")
        learning.follow(
            trainer,
            corpus.side_files(tokenizer, config),
            run,
            kind="train",
            evaluate=evaluate,
            describe=learning.loss_in_words,
            sample=watching.sampler(trainer, tokenizer, run.sample_prompt) if run.sample_every else None,
        )


def largest_tensor(flags: dict[str, Any], run: Run) -> int | None:
    """Bytes of the largest tensor of a step, as far as the flags say before anything is read."""
    from llmcli.training import memory

    if run.resume and (found := memory.of_directory(Path(run.output if run.resume == "auto" else run.resume))):
        return found
    shape = read_shape(flags["config"]) if flags["config"] else PRESETS[flags["preset"]]
    known = flags["tokenizer"]
    return memory.largest(shape, memory.vocab_size(Path(known)) if known else flags["vocab_size"])


def check_shape(start: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ModelError unless the run in `start` has the shape that was asked for; its context may be another."""
    for key, value in wanted.items():
        if key not in ("n_positions", "max_position_embeddings", "dtype") and found.get(key, value) != value:
            raise ModelError(
                f"{start}: the run there has {key} {found[key]}, this one would have {value}; give the same --preset "
                "or --config, or another --output"
            )


def read_shape(path: str) -> dict[str, Any]:
    """A config.json; raises ModelError when it is not a JSON object."""
    try:
        shape = loads(terminal.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(shape, dict):
        raise ModelError(f"{path}: expected a JSON object; got {type(shape).__name__}")
    return shape
