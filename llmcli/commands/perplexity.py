"""`llmcli perplexity`: how well a model predicts text, under a named protocol."""

from __future__ import annotations

import csv
import io
from typing import Any

import click

from llmcli.commands import options, terminal, texts
from llmcli.errors import ModelError

FIGURES = ("ppl", "nll_per_token", "bits_per_byte", "n_tokens", "n_bytes", "n_words", "word_ppl")


@options.define(
    "perplexity",
    examples=[
        ("the embedded model on a file", "llmcli perplexity book.txt"),
        ("a pipe, as JSON", "zcat corpus.gz | llmcli perplexity --json | jq .bits_per_byte"),
        ("several documents, each on its own", "llmcli perplexity -m gpt2 -c 1024 --stride 512 part-*.txt"),
    ],
)
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.model_options
@texts.window_options
@options.option("--protocol", metavar="NAME", help="The same by name: sliding:CTX/STRIDE.")
@options.encoding_options[0]
@options.seed_option
@options.output_options("text", "json", "csv")
@options.verbosity_options
def command(
    files: tuple[str, ...],
    choice: options.ModelChoice,
    ctx_size: int | None,
    stride: int | None,
    protocol: str | None,
    batch_size: int | None,
    encoding_errors: str,
    seed: int,
    format: str,
    output: str | None,
) -> None:
    """Perplexity of each text and of all together, with bits per byte and a 95 % interval.

    Each of FILES is a document of its own; '-' or no FILES reads stdin. A window slides over a document, so
    that every token after the first is scored exactly once, given the tokens before it in the window. The first
    token is context only: neither it nor its bytes count. The interval is a seeded bootstrap over blocks of
    tokens, or over documents when there are at least 30. Equal fingerprints mean comparable perplexities.
    """
    named = texts.read(files, encoding_errors)
    window = texts.stronger(protocol, ctx_size, stride)
    with terminal.open_output(output) as out:
        loaded = choice.load()
        rule = texts.rule(*window, loaded.model.config.n_positions)
        from llmcli import scoring

        documents, scores = texts.score(loaded, named, rule, batch_size)
        figures = scoring.report(documents, scores, rule, seed=seed)
        if format == "json":
            engine = {"seed": seed, **loaded.engine()}
            out.write(
                terminal.to_json({"schema": "llmcli/perplexity/1", "model": loaded.name, **figures, "llmcli": engine})
            )
        else:
            out.write(as_csv(figures) if format == "csv" else as_text(figures))
    if "error" in figures:
        raise ModelError(f"{figures['error']}; no perplexity")


def as_csv(figures: dict[str, Any]) -> str:
    """A row per document and a last row `total`."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["name", *FIGURES, "error"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*figures["documents"], {"name": "total", **figures}])
    return stream.getvalue()


def as_text(figures: dict[str, Any]) -> str:
    """A table for people; the last row is the total when there is more than one document."""
    rows = [*figures["documents"], {"name": "total", **figures}]
    ci, protocol = figures["ci"], figures["protocol"]
    table = terminal.table(
        ["document", *FIGURES],
        [[row["name"], *(cell(row[figure]) for figure in FIGURES)] for row in (rows if len(rows) > 2 else rows[:1])],
        right=range(1, len(FIGURES) + 1),
    )
    interval = f"{100 * ci['level']:.0f} % interval {cell(ci['low'])} to {cell(ci['high'])}, {ci['method']}"
    return (
        f"{table}\n"
        f"{interval if ci['low'] is not None else 'no interval: ' + ci['method']}\n"
        f"protocol {protocol['name']}, fingerprint {figures['fingerprint']}\n"
    )


def cell(value: float | None) -> str:
    """A count as it is, a figure with four decimals, and '-' for one that does not exist."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value < 1e6 else f"{value:.4g}"
