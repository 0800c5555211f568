"""`llmcli embed`: texts in, a vector for each out, in order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from llmcli.commands import lines, options


@options.define(
    "embed",
    examples=[
        ("a vector per line", "llmcli embed -m bert-dir sentences.txt > vectors.txt"),
        ("unit vectors as JSONL", "llmcli embed -m bert-dir --normalize --format jsonl < sentences.txt"),
        ("the first token's vector", "printf 'The sea\\n' | llmcli embed -m bert-dir --pooling cls"),
    ],
)
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.option(
    "--pooling",
    type=click.Choice(["mean", "cls"]),
    default="mean",
    help="The mean over a text's tokens, or its first token.",
)
@options.option("--normalize", is_flag=True, help="Vectors of length 1, whose dot products are cosines.")
@options.model_options
@options.quantize_option
@lines.line_options
def command(
    files: tuple[str, ...],
    pooling: str,
    normalize: bool,
    batch_size: int,
    encoding_errors: str,
    choice: options.ModelChoice,
    format: str,
    output: str | None,
) -> None:
    """Turn each line of FILES or stdin into a vector with an encoder such as BERT or RoBERTa.

    A line out for each line in: the numbers of the vector, with spaces between. A file whose name ends with .jsonl
    holds objects with "text". A text that is too long loses its end, with a warning.
    """
    texts = lines.read(files, encoding_errors)
    loaded = choice.load(kinds=("encoder",))
    from llmcli import encoding

    def results() -> Iterator[dict[str, Any]]:
        while batch := list(islice(texts, batch_size)):
            rows, n_cut = encoding.read(loaded, batch, cut=True)
            lines.warn_cut(n_cut, loaded.model.config.n_positions)
            vectors = encoding.embed(loaded, rows, pooling=pooling, normalize=normalize)
            for text, vector in zip(batch, vectors, strict=True):
                yield {"text": text, "embedding": vector.tolist()}

    lines.write(
        results(),
        lambda result: " ".join(f"{number:.9g}" for number in result["embedding"]) + "\n",
        {"schema": "llmcli/embedding/1", "model": loaded.name, "pooling": pooling, "normalized": normalize},
        loaded.engine(),
        what="embedding",
        format=format,
        output=output,
    )
