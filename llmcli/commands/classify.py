"""`llmcli classify`: texts in, a label and its probability for each, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import lines, options

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
@lines.line_options
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
    texts = lines.read(files, encoding_errors)
    loaded = choice.load(kinds=("decoder", "encoder"), classifier=True)
    lines.write(
        answers(loaded, texts, batch_size),
        lambda result: f"{result['label']}\t{result['p']:.4f}\n",
        {"schema": "llmcli/classification/1", "model": loaded.name, "labels": list(loaded.labels)},
        loaded.engine(),
        what="classifying",
        format=format,
        output=output,
    )


def answers(loaded: Loaded, texts: Iterator[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """The label, its probability and those of all labels, for each text in order."""
    from llmcli import classification

    limit = loaded.model.config.n_positions
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
