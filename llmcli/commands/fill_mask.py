"""`llmcli fill-mask`: texts with masked tokens in, the likeliest tokens for each out; or how likely each token is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice, repeat
from typing import Any

import click

from llmcli.commands import lines, options, terminal
from llmcli.errors import InputError


@options.define(
    "fill-mask",
    examples=[
        ("the likeliest words", "llmcli fill-mask -m bert-dir 'The capital of France is [MASK].'"),
        ("only the best one of each line", "llmcli fill-mask -m bert-dir -k 1 < lines.txt | cut -f1"),
        (
            "how likely a text is, token by token",
            "llmcli fill-mask -m bert-dir --score 'The capital of France is Paris.'",
        ),
        ("for a script", "llmcli fill-mask -m bert-dir --format jsonl < lines.txt"),
    ],
)
@click.argument("given", nargs=-1, metavar="[TEXT]...")
@options.option("-k", "--top-k", type=click.IntRange(1), default=5, help="Candidates for each mask.")
@options.option("--score", is_flag=True, help="Mask each token in turn instead, and tell how likely it is.")
@options.model_options
@options.quantize_option
@lines.line_options
def command(
    given: tuple[str, ...],
    top_k: int,
    score: bool,
    batch_size: int,
    encoding_errors: str,
    choice: options.ModelChoice,
    format: str,
    output: str | None,
) -> None:
    """Fill in the masked tokens of each TEXT, or of each line of stdin, with an encoder such as BERT or RoBERTa.

    A mask is written [MASK] or <mask>, whichever the model has. For each mask come its candidates, a line each: the
    token, a tab, its probability; an empty line ends a mask when there is more than one in all. With --score come the
    natural log of a text's probability, token by token from all its others, a tab and the text (pseudo-log-likelihood,
    Salazar et al., 2020); JSON has the tokens.
    """
    if not given and terminal.stdin_is_terminal():
        wanted = "a text" if score else "a text with [MASK]"
        raise InputError(f"expected {wanted}, got none; pass it as an argument, or pipe a text per line")
    loaded = choice.load(kinds=("encoder",))
    from llmcli import encoding

    texts = iter(given) if given else lines.texts("-", encoding_errors)

    def scores() -> Iterator[dict[str, Any]]:
        for text in texts:
            tokens = encoding.score(loaded, text, batch_size)
            total = math.fsum(token.logprob for token in tokens)
            yield {"text": text, "logprob": total, "tokens": [asdict(token) for token in tokens]}

    def fillings() -> Iterator[dict[str, Any]]:
        while batch := list(islice(texts, batch_size)):
            for text, masks in zip(batch, encoding.fill(loaded, batch, top_k), strict=True):
                yield {"text": text, "masks": [asdict(mask) for mask in masks]}

    separators = chain([""], repeat("\n"))

    def spell(result: dict[str, Any]) -> str:
        return "".join(
            next(separators) + "".join(f"{one['token']}\t{one['p']:.4f}\n" for one in mask["candidates"])
            for mask in result["masks"]
        )

    lines.write(
        scores() if score else fillings(),
        (lambda result: f"{result['logprob']:.4f}\t{result['text']}\n") if score else spell,
        {"schema": f"llmcli/{'masked-score' if score else 'fill-mask'}/1", "model": loaded.name},
        loaded.engine(),
        what="scoring" if score else "filling in",
        format=format,
        output=output,
    )
