"""`llmcli perplexity`: how well a model predicts text, under a named protocol."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options, terminal, texts
from llmcli.commands.terminal import figure
from llmcli.errors import InputError, ModelError

if TYPE_CHECKING:
    from llmcli.loading import Loaded
    from llmcli.scoring import Rule

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
@options.quantize_option
@options.cache_dtype_option
@texts.window_options
@options.option(
    "--protocol",
    metavar="NAME",
    help="sliding:CTX/STRIDE, llamacpp:CTX, hf:CTX/STRIDE, lm-eval, gpt2-paper, or all for one table. "
    "[default: sliding]",
)
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

    Each of FILES is a document of its own; '-' or no FILES reads stdin. Unless --protocol says otherwise, a window
    slides over a document, so that every token after the first is scored exactly once, given the tokens before it in
    the window; the first token is context only: neither it nor its bytes count. The interval is a seeded bootstrap
    over blocks of tokens, or over documents when there are at least 30. Equal fingerprints mean comparable
    perplexities.
    """
    named = texts.read(files, encoding_errors)
    window = texts.stronger(protocol, ctx_size, stride)
    with terminal.open_output(output) as out:
        loaded = choice.load()
        limit = loaded.model.config.n_positions
        from llmcli import scoring

        head = {"model": loaded.name, "llmcli": {"seed": seed, **loaded.engine()}}
        if window[0] == "all":
            rows = [measure(loaded, named, rule, batch_size, seed) for rule in scoring.every(limit)]
            out.write(all_of(rows, head, format))
            figures = next((row for row in rows if row["n_tokens"] and "error" in row), {})
        else:
            rule = texts.rule(*window, limit)
            documents, scores = texts.score(loaded, named, rule, batch_size)
            figures = scoring.report(documents, scores, rule, seed=seed)
            if format == "json":
                out.write(terminal.to_json({"schema": "llmcli/perplexity/1", **head, **figures}))
            else:
                out.write(as_csv(figures) if format == "csv" else as_text(figures))
    if "error" in figures:
        raise ModelError(f"{figures['error']}; no perplexity")


def measure(
    loaded: Loaded, named: list[tuple[str, str]], rule: Rule, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """The figures under one of all protocols; a text that is too short for it has an "error" in their place."""
    from llmcli import scoring

    try:
        documents, scores = texts.score(loaded, named, rule, batch_size)
    except InputError as error:
        return {"protocol": rule.describe(), "n_tokens": 0, "error": str(error)}
    return scoring.report(documents, scores, rule, seed=seed)


def all_of(rows: list[dict[str, Any]], head: dict[str, Any], format: str) -> str:
    """One table of every protocol. Raises InputError where the texts are too short for each of them."""
    if not any(row["n_tokens"] for row in rows):
        raise InputError(str(rows[0]["error"]))
    if format == "json":
        return terminal.to_json({"schema": "llmcli/perplexity-all/1", **head, "results": rows})
    heads = [row.get("headline", {}) for row in rows]
    if format == "csv":
        return table_of(["protocol", *FIGURES, "headline", "low", "high", "fingerprint", "error"], [
            {**row, "protocol": row["protocol"]["name"], "low": head.get("low"), "high": head.get("high"),
             "headline": head.get("figure")} for row, head in zip(rows, heads, strict=True)
        ])  # fmt: skip
    columns = ["protocol", *FIGURES, "headline", "low", "high", "fingerprint"]
    cells = [
        [row["protocol"]["name"], *(figure(row.get(name)) for name in FIGURES), head.get("figure", "-"),
         figure(head.get("low")), figure(head.get("high")), row.get("fingerprint", "-")[:16]]
        for row, head in zip(rows, heads, strict=True)
    ]  # fmt: skip
    notes = "".join(f"{row['protocol']['name']}: {row['error']}\n" for row in rows if "error" in row)
    return (
        terminal.table(columns, cells, right=[*range(1, len(FIGURES) + 1), len(columns) - 3, len(columns) - 2]) + notes
    )


def as_csv(figures: dict[str, Any]) -> str:
    """A row per document and a last row `total`."""
    return table_of(["name", *FIGURES, "error"], [*figures["documents"], {"name": "total", **figures}])


def table_of(columns: list[str], rows: list[dict[str, Any]]) -> str:
    """Rows as CSV under a header; what a row does not have is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_text(figures: dict[str, Any]) -> str:
    """A table for people; the last row is the total when there is more than one document."""
    rows = [*figures["documents"], {"name": "total", **figures}]
    ci, protocol, head = figures["ci"], figures["protocol"], figures["headline"]
    table = terminal.table(
        ["document", *FIGURES],
        [[row["name"], *(figure(row[name]) for name in FIGURES)] for row in (rows if len(rows) > 2 else rows[:1])],
        right=range(1, len(FIGURES) + 1),
    )
    interval = (
        f"{100 * ci['level']:.0f} % interval of {head['figure']}: {figure(head['low'])} to {figure(head['high'])}, "
        f"{ci['method']}"
    )
    macro = figures["macro"]
    each = f"mean of documents: ppl {figure(macro['ppl'])}, bits_per_byte {figure(macro['bits_per_byte'])}\n"
    return (
        f"{table}\n"
        f"{each if len(rows) > 2 else ''}"
        f"{interval if ci['low'] is not None else 'no interval: ' + ci['method']}\n"
        f"protocol {protocol['name']}, headline {head['figure']}, fingerprint {figures['fingerprint']}\n"
    )
