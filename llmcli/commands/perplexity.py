"""`llmcli perplexity`: how well a model predicts text, under a named protocol."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options, terminal
from llmcli.commands.progress import Progress
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
@options.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(1),
    metavar="N",
    help="Tokens the model reads at once. [default: all it can]",
)
@options.option(
    "--stride",
    aliases=["--ppl-stride"],
    type=click.IntRange(1),
    metavar="N",
    help="Tokens between windows: less is more context and more work. [default: half of --ctx-size]",
)
@options.option("--protocol", metavar="NAME", help="The same by name: sliding:CTX/STRIDE.")
@options.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Windows scored together; changes the speed only. [default: about 2048 tokens]",
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

    Each of FILES is a document of its own; '-' or no FILES reads stdin. A window slides over a document, so
    that every token after the first is scored exactly once, given the tokens before it in the window. The first
    token is context only: neither it nor its bytes count. The interval is a seeded bootstrap over blocks of
    tokens, or over documents when there are at least 30. Equal fingerprints mean comparable perplexities.
    """
    texts = read(files, encoding_errors)
    protocol, ctx_size, stride = stronger(protocol, ctx_size, stride)
    with terminal.open_output(output) as out:
        loaded = choice.load()
        rule = named(protocol, ctx_size, stride, loaded.model.config.n_positions)
        figures = measure(loaded, texts, rule, batch_size or max(1, 2048 // rule.context), seed)
        if format == "json":
            engine = {"seed": seed, **loaded.engine()}
            out.write(
                terminal.to_json({"schema": "llmcli/perplexity/1", "model": loaded.name, **figures, "llmcli": engine})
            )
        else:
            out.write(as_csv(figures) if format == "csv" else as_text(figures))
    if "error" in figures:
        raise ModelError(f"{figures['error']}; no perplexity")


def read(files: tuple[str, ...], errors: str) -> list[tuple[str, str]]:
    """The name and the text of every document. Raises InputError and ModelError."""
    if not files and terminal.stdin_is_terminal():
        raise InputError("expected text, got none; name files, or pipe text in ('-' is stdin)")
    if files.count("-") > 1:
        raise InputError(f"expected '-' (stdin) once, got it {files.count('-')} times")
    for path in files:
        if os.path.isdir(path):
            raise InputError(
                f"expected text files, got the directory '{path}'; name its files: {path.rstrip('/')}/*.txt"
            )
    # A name in another encoding is spelt with U+FFFD, because the report is UTF-8.
    return [
        (os.fsencode(path).decode("utf-8", "replace"), terminal.read_text(path, errors)) for path in files or ("-",)
    ]


def stronger(
    protocol: str | None, ctx_size: int | None, stride: int | None
) -> tuple[str | None, int | None, int | None]:
    """The name or the numbers: flags beat environment variables. Raises InputError when both are equally strong."""
    if protocol is None or (ctx_size, stride) == (None, None):
        return protocol, ctx_size, stride
    flagged = [
        click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        for name in ("protocol", "ctx_size", "stride")
    ]
    if flagged[0] == any(flagged[1:]):
        raise InputError("expected either --protocol or --ctx-size and --stride, got both")
    return (protocol, None, None) if flagged[0] else (None, ctx_size, stride)


def named(protocol: str | None, ctx_size: int | None, stride: int | None, limit: int) -> Rule:
    """The protocol that the flags ask for, within the `limit` of the model. Raises InputError."""
    from llmcli import scoring

    if protocol is not None:
        rule = scoring.protocol(protocol)
    else:
        context = limit if ctx_size is None else ctx_size
        rule = scoring.Sliding(context, scoring.default_stride(context) if stride is None else stride)
    if rule.context > limit:
        raise InputError(f"context: expected at most {limit} tokens, which is all this model reads, got {rule.context}")
    return rule


def measure(loaded: Loaded, texts: list[tuple[str, str]], rule: Rule, batch_size: int, seed: int) -> dict[str, Any]:
    """Score every text, with progress and warnings on stderr, and sum up. Raises InputError if none has two tokens."""
    import numpy as np

    from llmcli import scoring

    documents = [scoring.encode(name, text, loaded.tokenizer) for name, text in texts]
    n_tokens = sum(document.n_tokens for document in documents)
    for document in documents:
        if not document.n_tokens:
            name = "standard input" if document.name == "-" else document.name
            problem = f"{name}: expected at least two tokens, got {len(document.ids)}"
            if not n_tokens:
                raise InputError(f"{problem}; there is nothing to score")
            terminal.note(f"warning: {problem}; left out")
    done, scores = 0, []
    with Progress("scoring", total=n_tokens, unit="tokens") as progress:
        for document in documents:
            scores.append(np.empty(document.n_tokens, dtype=np.float32))
            end = 0
            for part in scoring.logprobs(loaded.model, document.ids, rule, batch_size=batch_size, device=loaded.device):
                scores[-1][end : end + len(part)] = part
                end += len(part)
                progress(done + end)
            done += end
    return scoring.report(documents, scores, rule, seed=seed)


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
