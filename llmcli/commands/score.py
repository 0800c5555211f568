"""`llmcli score`: how surprising each token is, as a list, a heat map, a linter, or the answers to multiple choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options, terminal, texts
from llmcli.commands.answering import answer
from llmcli.commands.heating import paint, suffix
from llmcli.commands.parameters import Bits
from llmcli.errors import GateFailed, InputError

if TYPE_CHECKING:
    from llmcli.scoring.surprisal import Token


@options.define(
    "score",
    examples=[
        ("a line per token: its place, its log-probability, its text", "llmcli score essay.txt"),
        ("colours by surprise", "llmcli score --heat essay.txt"),
        ("the same as a page or a picture", "llmcli score --heat essay.txt -o essay.html"),
        ("fail where a token is a great surprise", "llmcli score --lint --over 12bits README.md"),
        ("a multiple-choice test", "llmcli score -m gpt2 --choices hellaswag_val.jsonl"),
    ],
)  # fmt: skip
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.option("--heat", is_flag=True, help="Colour the text by surprise; with -o FILE.html or FILE.png, write that.")
@options.option(
    "--lint", is_flag=True, help="List the tokens above --over as file:line:column; exit 3 if there is one."
)
@options.option("--over", type=Bits(), default="12bits", help="What --lint reports: 12bits, or 8.3nats.")
@options.option("--choices", metavar="FILE", help="Answer the questions of a JSONL file: docs/score.md; - is stdin.")
@options.model_options
@options.quantize_option
@texts.window_options
@options.encoding_options[0]
@options.output_options("text", "json", "jsonl")
@options.verbosity_options
def command(
    files: tuple[str, ...],
    heat: bool,
    lint: bool,
    over: float,
    choices: str | None,
    choice: options.ModelChoice,
    ctx_size: int | None,
    stride: int | None,
    batch_size: int | None,
    encoding_errors: str,
    format: str,
    output: str | None,
) -> None:
    """Log-probability of every token of each text, given the tokens before it in a sliding window.

    Text output has a token per line: line:column, log-probability (natural), and the token as a JSON string; the first
    token of a document is context only and has '-'. A bit of surprise is one halving of the probability.
    """
    if heat + lint + (choices is not None) > 1:
        raise InputError("expected one of --heat, --lint and --choices, got several")
    source = click.get_current_context().get_parameter_source("over")
    if not lint and source is click.core.ParameterSource.COMMANDLINE:
        raise InputError("--over: expected --lint, whose threshold it is")
    if choices is not None:
        if files or stride is not None:
            raise InputError("--choices: expected neither FILES nor --stride")
        answer(choices, choice, ctx_size, batch_size or 4, format, output)
        return
    page = suffix(output) if heat else ""
    if heat and format != "text":
        raise InputError(f"--heat: expected no --format, got {format}; -o FILE.html or FILE.png chooses one")
    named = texts.read(files, encoding_errors)
    with terminal.open_output(output) as out:
        loaded = choice.load()
        rule = texts.rule(None, ctx_size, stride, loaded.model.config.n_positions)
        documents, scores = texts.score(loaded, named, rule, batch_size)
        from llmcli.scoring import surprisal

        located = [
            (document.name, surprisal.locate(document, row, loaded.tokenizer, text))
            for document, row, (_, text) in zip(documents, scores, named, strict=True)
        ]
        if heat:
            paint(located, page, out)
            return
        if lint:
            hits = [(name, *hit) for name, tokens in located for hit in surprisal.surprises(tokens, over)]
            rows = [hit_record(*hit) for hit in hits]
            text = "".join(
                f"{row['name']}:{row['line']}:{row['column']}: {row['bits']:.2f} bits {quote(hit[1])}\n"
                for row, hit in zip(rows, hits, strict=True)
            )
            head: dict[str, Any] = {"schema": "llmcli/lint/1", "over_bits": over}
        else:
            rows = [{"name": name, **columns(tokens)} for name, tokens in located]
            text = "".join(line(name, token, len(located) > 1) for name, tokens in located for token in tokens)
            head = {"schema": "llmcli/score/1"}
        head |= {"model": loaded.name, "protocol": rule.describe()}
        if format == "jsonl":
            text = "".join(terminal.to_json({**head, **row}, indent=None) for row in rows)
        elif format == "json":
            text = terminal.to_json({**head, "hits" if lint else "documents": rows, "llmcli": loaded.engine()})
        out.write(text)
    if lint and hits:
        raise GateFailed(f"{len(hits)} of {sum(len(t) for _, t in located)} tokens are more than {over:g} bits")


def quote(token: Token) -> str:
    """A token as a JSON string, or as its bytes, on one line and with nothing in it that a terminal obeys."""
    try:
        text = terminal.to_json(token.data.decode(), indent=None).rstrip("\n")
    except UnicodeDecodeError:
        return '"' + "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in token.data) + '"'
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def line(name: str, token: Token, several: bool) -> str:
    """A row of the text output; several documents put their names first."""
    place = f"{name}:" if several else ""
    logprob = "-" if token.logprob is None else f"{token.logprob:.4f}"
    return f"{place}{token.line}:{token.column}\t{logprob}\t{quote(token)}\n"


def hit_record(name: str, token: Token, bits: float) -> dict[str, Any]:
    """A hit of --lint as JSON."""
    from llmcli.generation.text_stream import spell

    return {
        "name": name, "line": token.line, "column": token.column, "byte_offset": token.offset, "bits": bits,
        "token": spell(token.data), "token_id": token.id,
    }  # fmt: skip


def columns(tokens: list[Token]) -> dict[str, Any]:
    """A document's tokens as lists of equal length; logprobs are natural, null for the first token."""
    from llmcli.generation.text_stream import spell

    return {
        "tokens": [spell(token.data) for token in tokens],
        "token_ids": [token.id for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "byte_offset": [token.offset for token in tokens],
    }
