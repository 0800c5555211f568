"""`llmcli classify`: texts in, a label and its probability for each, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options, terminal
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.loading import Loaded


@options.define(
    "classify",
    examples=[
        ("a line of text each", "printf 'a joy\\na bore\\n' | llmcli classify -m runs/mood"),
        ("only the labels", "llmcli classify -m runs/mood reviews.txt | cut -f1"),
        ("every probability, as JSONL", "llmcli classify -m runs/mood reviews.jsonl --format jsonl"),
    ],
)
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.model_options
@options.option(
    "--batch-size", type=click.IntRange(1, 4096), default=32, help="Texts read together; changes the speed only."
)
@options.encoding_options[0]
@options.output_options("text", "json", "jsonl")
@options.verbosity_options
def command(
    files: tuple[str, ...],
    choice: options.ModelChoice,
    batch_size: int,
    encoding_errors: str,
    format: str,
    output: str | None,
) -> None:
    """Label each line of FILES or stdin with a model of 'llmcli finetune --task classify'.

    A line out for each line in: the likeliest label, a tab, its probability. A file whose name ends with .jsonl holds
    objects with "text". JSON and JSONL have the probability of every label.
    """
    if not files and terminal.stdin_is_terminal():
        raise InputError("expected texts, got none; name files, or pipe a text per line ('-' is stdin)")
    loaded = choice.load(kinds=("decoder", "encoder"), classifier=True)
    lines = (text for path in files or ("-",) for text in texts(path, encoding_errors))
    results = []
    with terminal.open_output(output) as out, Progress("classifying", unit="texts") as progress:
        for number, result in enumerate(answers(loaded, lines, batch_size), 1):
            progress(number)
            if format == "json":
                results.append(result)
            elif format == "jsonl":
                out.write(terminal.to_json(result, indent=None))
            else:
                out.write(f"{result['label']}\t{result['p']:.4f}\n")
        if format == "json":
            document = {"schema": "llmcli/classification/1", "model": loaded.name, "labels": list(loaded.labels)}
            out.write(terminal.to_json({**document, "results": results, "llmcli": loaded.engine()}))


def texts(path: str, errors: str) -> Iterator[str]:
    """The lines of a file or of stdin without their ends, or the texts of a JSONL file."""
    from llmcli import examples

    if path.endswith(".jsonl"):
        for name, record in examples.split(terminal.read_text(path, errors), path, jsonl=True):
            yield examples.string(record, "text", name)
        return
    for number, line in enumerate(terminal.read_lines(path), 1):
        source = f"line {number} of {'standard input' if path == '-' else path}"
        yield terminal.decode(line.rstrip(b"\n").removesuffix(b"\r"), source, errors)


def answers(loaded: Loaded, lines: Iterator[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """The label, its probability and those of all labels, for each text in order."""
    from llmcli import classification

    limit = loaded.model.config.n_positions
    while batch := list(islice(lines, batch_size)):
        rows, n_cut = classification.encode(loaded.tokenizer, batch, limit, encoder=loaded.model.KIND == "encoder")
        if n_cut:
            terminal.note(f"warning: {n_cut} texts lost their end: this model reads {limit} tokens")
        for block in classification.probabilities(loaded.model, rows, batch_size=batch_size, device=loaded.device):
            yield from (answer(loaded.labels, row) for row in block.tolist())


def answer(labels: Sequence[str], probabilities: list[float]) -> dict[str, Any]:
    """One result; of equal probabilities the first label wins."""
    best = max(probabilities)
    return {
        "label": labels[probabilities.index(best)],
        "p": best,
        "probabilities": dict(zip(labels, probabilities, strict=True)),
    }
