"""`llmcli fill-mask`: texts with masked tokens in, the likeliest tokens for each out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import click

from llmcli.commands import options, terminal
from llmcli.commands.classify import texts
from llmcli.errors import InputError


@options.define(
    "fill-mask",
    examples=[
        ("the likeliest words", "llmcli fill-mask -m bert-dir 'The capital of France is [MASK].'"),
        ("only the best one of each line", "llmcli fill-mask -m bert-dir -k 1 < lines.txt | cut -f1"),
        ("for a script", "llmcli fill-mask -m bert-dir --format jsonl < lines.txt"),
    ],
)
@click.argument("given", nargs=-1, metavar="[TEXT]...")
@options.option("-k", "--top-k", type=click.IntRange(1), default=5, help="Candidates for each mask.")
@options.option(
    "--batch-size", type=click.IntRange(1, 4096), default=32, help="Texts read together; changes the speed only."
)
@options.encoding_options[0]
@options.model_options
@options.quantize_option
@options.output_options("text", "json", "jsonl")
@options.verbosity_options
def command(
    given: tuple[str, ...],
    top_k: int,
    batch_size: int,
    encoding_errors: str,
    choice: options.ModelChoice,
    format: str,
    output: str | None,
) -> None:
    """Fill in the masked tokens of each TEXT, or of each line of stdin, with an encoder such as BERT or RoBERTa.

    A mask is written [MASK] or <mask>, whichever the model has. For each mask come its candidates, a line each: the
    token, a tab, its probability; an empty line ends a mask when there is more than one in all.
    """
    if not given and terminal.stdin_is_terminal():
        raise InputError("expected a text with [MASK], got none; pass it as an argument, or pipe a text per line")
    loaded = choice.load(kinds=("encoder",))
    from llmcli import encoding

    lines: Iterator[str] = iter(given) if given else texts("-", encoding_errors)
    results: list[dict[str, Any]] = []
    with terminal.open_output(output) as out:
        first = True
        while batch := list(islice(lines, batch_size)):
            for text, masks in zip(batch, encoding.fill(loaded, batch, top_k), strict=True):
                result = {"text": text, "masks": [asdict(mask) for mask in masks]}
                if format == "json":
                    results.append(result)
                elif format == "jsonl":
                    out.write(terminal.to_json(result, indent=None))
                else:
                    for mask in masks:
                        out.write("" if first else "\n")
                        out.write("".join(f"{one.token}\t{one.p:.4f}\n" for one in mask.candidates))
                        first = False
        if format == "json":
            document = {"schema": "llmcli/fill-mask/1", "model": loaded.name, "results": results}
            out.write(terminal.to_json({**document, "llmcli": loaded.engine()}))
