"""`llmcli embed`: texts in, a vector for each out, in order."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from llmcli.commands import options, terminal
from llmcli.commands.classify import texts
from llmcli.commands.progress import Progress
from llmcli.errors import InputError


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
@options.option(
    "--batch-size", type=click.IntRange(1, 4096), default=32, help="Texts read together; changes the speed only."
)
@options.encoding_options[0]
@options.model_options
@options.quantize_option
@options.output_options("text", "json", "jsonl")
@options.verbosity_options
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
    if not files and terminal.stdin_is_terminal():
        raise InputError("expected texts, got none; name files, or pipe a text per line ('-' is stdin)")
    loaded = choice.load(kinds=("encoder",))
    from llmcli import encoding

    lines = (text for path in files or ("-",) for text in texts(path, encoding_errors))
    results: list[dict[str, Any]] = []
    done = 0
    with terminal.open_output(output) as out, Progress("embedding", unit="texts") as progress:
        while batch := list(islice(lines, batch_size)):
            rows, n_cut = encoding.read(loaded, batch, cut=True)
            if n_cut:
                limit = loaded.model.config.n_positions
                terminal.note(f"warning: {n_cut} texts lost their end: this model reads {limit} tokens")
            for text, vector in zip(
                batch, encoding.embed(loaded, rows, pooling=pooling, normalize=normalize), strict=True
            ):
                numbers = vector.tolist()
                result = {"text": text, "embedding": numbers}
                if format == "json":
                    results.append(result)
                elif format == "jsonl":
                    out.write(terminal.to_json(result, indent=None))
                else:
                    out.write(" ".join(f"{number:.9g}" for number in numbers) + "\n")
            done += len(batch)
            progress(done)
        if format == "json":
            document: dict[str, Any] = {"schema": "llmcli/embedding/1", "model": loaded.name, "pooling": pooling}
            document |= {"normalized": normalize, "results": results, "llmcli": loaded.engine()}
            out.write(terminal.to_json(document))
