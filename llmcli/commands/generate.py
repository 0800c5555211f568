"""`llmcli generate`: one prompt, or a file of many, continued on stdout."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from typing import Any

import click

from llmcli.commands import terminal
from llmcli.commands.constraining import constraint_options, require_matches
from llmcli.commands.continuing import (
    continue_many,
    continue_one,
    leave_if,
    numbered,
    open_session,
    report,
    resume_many,
    write_receipt,
)
from llmcli.commands.options import (
    ModelChoice,
    Number,
    cache_dtype_option,
    define,
    encoding_options,
    model_options,
    option,
    output_options,
    quantize_option,
    sampling_options,
    verbosity_options,
)
from llmcli.commands.shortcuts import Shortcuts, shortcut_options
from llmcli.errors import InputError

PROMPT_LIMIT = 16_000_000  # bytes: more than any context holds, so that an endless pipe ends in an error


@define(
    "generate",
    short_help="Continue a prompt, or a JSONL file of prompts.",
    examples=[
        ("the embedded model, greedy: the same text every time", 'llmcli generate "Once upon a time"'),
        ("a pipe; piped text comes before the argument", "cat notes.txt | llmcli generate 'In short:' -n 60"),
        ("three samples as one JSON document", 'llmcli generate "The sea" --temperature 0.8 --num-samples 3 --json'),
        ("one of three words", 'llmcli generate "The sea was" --regex " (calm|wild|cold)"'),
        ("JSON of a schema", "llmcli generate -f letter.txt --json-schema order.schema.json -n 300"),
        ("many prompts, eight at a time", "llmcli generate --jsonl prompts.jsonl --batch-size 8 -o texts.jsonl"),
    ],
)
@click.argument("argument", metavar="[PROMPT]", required=False)
@option("-p", "--prompt", metavar="TEXT", help="The prompt; '-' is stdin.")
@option("-f", "--file", metavar="FILE", help="A file that holds the prompt; '-' is stdin.")
@option("--jsonl", metavar="FILE", help='Prompts, one {"prompt", "id"?, "max_tokens"?, "seed"?, …} a line; - is stdin.')
@option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=1,
    help="Records of --jsonl continued together; the texts do not depend on it.",
)
@option("--resume", is_flag=True, help="With --jsonl and -o: go on where an earlier run of the same command ended.")
@option(
    "-n",
    "--max-tokens",
    aliases=["--max-new-tokens", "--n-predict"],
    type=click.IntRange(1),
    default=128,
    help="Tokens to write at most.",
)
@option("--stop", multiple=True, metavar="TEXT", help="End before this text; can be repeated.")
@option("--num-samples", type=click.IntRange(1, 4096), default=1, help="Texts per prompt.")
@sampling_options
@constraint_options
@option("--beams", type=click.IntRange(1, 1024), default=1, help="Search for the likeliest text with this many beams.")
@option(
    "--length-penalty",
    type=Number(-100, 100),
    default=1.0,
    help="Beams are ranked by log-probability / length ^ this.",
)
@option("--logprobs", type=click.IntRange(0), metavar="K", help="Log-probabilities of each token and the K likeliest.")
@option(
    "-c", "--ctx-size", type=click.IntRange(2), metavar="N", help="Tokens of prompt and text. [default: the model's]"
)
@option(
    "--ctx-overflow",
    type=click.Choice(["error", "truncate", "slide"]),
    default="error",
    help="A prompt that does not fit is an error, loses its beginning, or is cut to the last half of the context. "
    "A full context ends the text; with slide, the text goes on from its last half.",
)
@shortcut_options
@option(
    "--receipt",
    metavar="FILE",
    help="Write what decided the text, and its tokens, for 'llmcli replay'; with --jsonl, a line for each record.",
)
@encoding_options[0]
@encoding_options[1]
@model_options
@quantize_option
@cache_dtype_option
@output_options("text", "json", "jsonl")
@verbosity_options
def command(
    argument: str | None,
    prompt: str | None,
    file: str | None,
    jsonl: str | None,
    batch_size: int,
    beams: int,
    length_penalty: float,
    ctx_size: int | None,
    ctx_overflow: str,
    escape: bool,
    encoding_errors: str,
    choice: ModelChoice,
    shortcuts: Shortcuts,
    format: str,
    output: str | None,
    receipt: str | None,
    resume: bool,
    **settings: Any,
) -> None:
    """Continue PROMPT, or the text piped in, and print the continuation only, with a newline at its end.

    Greedy by default. With --temperature above 0, a text depends on its prompt, its seed and its number among the
    samples, and on nothing else. Tokens are chosen after penalties, temperature, top-k, top-p and min-p, in this order.
    """
    shortcuts.check(beams, batch_size, jsonl is not None)
    stops = [terminal.decode(os.fsencode(text), "--stop", encoding_errors) for text in settings["stop"]]
    settings["stop"] = tuple(map(terminal.unescape, stops) if escape else stops)
    if jsonl is None:
        if resume:
            raise InputError("--resume: expected --jsonl, whose records it goes on with")
        if settings["logprobs"] is not None and format == "text":
            raise InputError("--logprobs: expected --format json or jsonl, which have a place for them")
        text = terminal.read_prompt(argument, prompt, file, errors=encoding_errors, escape=escape, limit=PROMPT_LIMIT)
        session = open_session(choice, beams, length_penalty, ctx_size, ctx_overflow)
        shortcuts.take(session, choice)
        request = session.request(text, settings)
        with terminal.open_output(output) as out:
            with suppress(click.exceptions.Exit), terminal.interruptible() as interrupt:
                samples = continue_one(session, request, format, out, interrupt, noted=receipt is not None)
            if format == "text":
                leave_if(interrupt)  # before the file appears: a text cannot say that it was cut short
                require_matches(samples)
        leave_if(interrupt)
        if receipt is not None:
            write_receipt(receipt, session, text, request, samples)
        require_matches(samples)
        return
    if resume and receipt is not None:
        raise InputError("--receipt: expected a whole run, got --resume; a record's document names what decided it")
    if (argument, prompt, file) != (None, None, None):
        raise InputError("expected a prompt or --jsonl, got both")
    if format == "json":
        raise InputError("--jsonl gives a document per line: expected --format jsonl or text, got json")
    if click.get_current_context().get_parameter_source("format") is click.core.ParameterSource.DEFAULT:
        format = "jsonl"
    if resume and (format != "jsonl" or output in (None, "-")):
        raise InputError("--resume: expected --format jsonl and -o FILE")
    lines = terminal.read_lines(jsonl)
    session = open_session(choice, beams, length_penalty, ctx_size, ctx_overflow)
    shortcuts.take(session, choice)
    if resume:
        result = resume_many(session, lines, batch_size, settings, encoding_errors, str(output))
    else:
        with (
            terminal.open_output(output) as out,
            nullcontext() if receipt is None else terminal.open_output(receipt) as notes,
        ):
            result = continue_many(
                session, numbered(lines), batch_size, settings, encoding_errors, format, out, notes=notes
            )
    leave_if(result.interrupt)
    report(result)
