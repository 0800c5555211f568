"""`llmcli classify`: texts in, a label and its probability for each, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import classes, lines, options, terminal
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.data.examples import Labelled
    from llmcli.loading import Loaded


@options.define(
    "classify",
    examples=[
        ("a line of text each", "printf 'a joy\\na bore\\n' | llmcli classify -m runs/mood"),
        ("only the labels", "llmcli classify -m runs/mood reviews.txt | cut -f1"),
        ("every probability, as JSONL", "llmcli classify -m runs/mood reviews.jsonl --format jsonl"),
        ("how often it is right", "llmcli classify -m runs/mood --figures dev.jsonl"),
    ],
)
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.model_options
@options.option(
    "--figures",
    is_flag=True,
    help='The texts are JSONL with "label": accuracy, precision, recall, F1 and the confusion matrix, no answers.',
)
@lines.line_options
def command(
    files: tuple[str, ...],
    choice: options.ModelChoice,
    figures: bool,
    batch_size: int,
    encoding_errors: str,
    format: str,
    output: str | None,
) -> None:
    """Label each line of FILES or stdin with a model of 'llmcli finetune --task classify'.

    A line out for each line in: the likeliest label, a tab, its probability. A file whose name ends with .jsonl holds
    objects with "text". JSON and JSONL have the probability of every label.
    """
    if figures and format == "jsonl":
        raise InputError("--figures: expected --format text or json, got jsonl")
    texts = lines.read(files, encoding_errors)
    labelled = list(lines.labelled(files, encoding_errors)) if figures else []
    loaded = choice.load(kinds=("decoder", "encoder"), classifier=True)
    head = {"model": loaded.name, "labels": list(loaded.labels)}
    if figures:
        return write_figures(loaded, labelled, head, batch_size, format, output)
    lines.write(
        answers(loaded, texts, batch_size),
        lambda result: f"{result['label']}\t{result['p']:.4f}\n",
        {"schema": "llmcli/classification/1", **head},
        loaded.engine(),
        what="classifying",
        format=format,
        output=output,
    )


def answers(loaded: Loaded, texts: Iterable[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """The label, its probability and those of all labels, for each text in order."""
    from llmcli import classification

    texts, limit = iter(texts), loaded.model.config.n_positions
    while batch := list(islice(texts, batch_size)):
        rows, n_cut = classification.encode(loaded.tokenizer, batch, limit, encoder=loaded.model.KIND == "encoder")
        lines.warn_cut(n_cut, limit)
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


def write_figures(
    loaded: Loaded,
    labelled: Sequence[Labelled],
    head: dict[str, Any],
    batch_size: int,
    format: str,
    output: str | None,
) -> None:
    """Classify, and write how well the labels are told apart. Raises InputError for a label that no answer can be."""
    from llmcli import classification

    labels = list(loaded.labels)
    for one in labelled:
        if one.label not in labels:
            raise InputError(f"{one.name}: expected a label among {', '.join(labels)[:200]}; got {one.label!r}")
    got = []
    with terminal.open_output(output) as out:
        with Progress("classifying", total=len(labelled), unit="texts") as progress:
            for result in answers(loaded, (one.text for one in labelled), batch_size):
                got.append(labels.index(result["label"]))
                progress(len(got))
        found = classification.figures(labels, [labels.index(one.label) for one in labelled], got)
        if format == "json":
            document = {"schema": "llmcli/class-figures/1", **head, "n": len(got), **dataclasses.asdict(found)}
            out.write(terminal.to_json({**document, "llmcli": loaded.engine()}))
        else:
            right = sum(found.confusion[number][number] for number in range(len(labels)))
            out.write(f"{classes.table(found)}accuracy {100 * found.accuracy:.2f} % ({right} of {len(got)})\n")
