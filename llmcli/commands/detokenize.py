"""`llmcli detokenize`: token ids to the bytes that they stand for. Needs a tokenizer, never weights."""

from __future__ import annotations

import sys
from json import loads

import click

from llmcli.commands.options import define, option, tokenizer_options, verbosity_options
from llmcli.errors import InputError


@define(
    "detokenize",
    examples=[
        ("ids as arguments", "llmcli detokenize 464 290 318"),
        ("ids from a pipe, in any layout", "echo '[464, 290, 318]' | llmcli detokenize"),
        ("one text per line of ids", "llmcli detokenize --lines < ids.txt"),
    ],
)
@click.argument("ids", nargs=-1)
@option("-f", "--file", type=click.Path(), metavar="FILE", help="Read the ids from FILE; '-' is stdin.")
@option("--lines", is_flag=True, help="Treat each line as a text of its own and end it with a newline.")
@option("--json", is_flag=True, help="One JSON document per text, one per line.")
@option("-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE instead of stdout; '-' is stdout.")
@tokenizer_options
@verbosity_options
def command(
    ids: tuple[str, ...],
    file: str | None,
    lines: bool,
    json: bool,
    output: str | None,
    model: str,
    offline: bool,
) -> None:
    """Print the bytes of IDS, or of the ids on standard input.

    Ids are separated by spaces, commas or line ends; lists in JSON and the documents of 'llmcli tokenize --json' work
    as well. Nothing is added: the ids of a text give back that text, byte for byte.
    """
    from llmcli import description
    from llmcli.commands.terminal import open_output, read_text, stdin_is_terminal, to_json
    from llmcli.hub import find

    if ids == ("-",) or (not ids and (file is not None or not stdin_is_terminal())):
        source = read_text("-" if ids or file is None else file)
    elif ids:
        source = " ".join(ids)
    else:
        raise InputError("expected token ids, got none; pass them as arguments, with -f FILE, or through a pipe")
    documents = source.lstrip().startswith("{")
    parts = source.removesuffix("\n").split("\n") if lines or documents else [source]
    rows = [parse(part, number) for number, part in enumerate(parts, 1)]
    tokenizer = description.tokenizer(find(model, offline=offline))
    data = [tokenizer.spell(row) for row in rows]  # all, so that a bad id writes nothing
    with open_output(output) as out:
        for row, text in zip(rows, data, strict=True):
            if json:
                document = {
                    "schema": "llmcli/detokenize/1",
                    "model": model,
                    "n_tokens": len(row),
                    "n_bytes": len(text),
                    "text": text.decode("utf-8", "replace"),
                }
                out.write(to_json(document, indent=None))
            else:
                out.write(text + b"\n" * lines)
        if output is None and not (lines or json) and sys.stdout.isatty():
            out.write("\n")  # so that the shell's prompt starts on a line of its own


def parse(text: str, line: int) -> list[int]:
    """The ids in one text. Raises InputError at the first thing that is not an id."""
    if text.lstrip().startswith("{"):
        try:
            ids = loads(text)["ids"]
        except (ValueError, KeyError, RecursionError):
            raise InputError(f'expected a JSON object with "ids" on line {line}, got {text[:60]!r}') from None
        words = [str(item) for item in ids] if isinstance(ids, list) else [str(ids)]
    else:
        words = text.translate(str.maketrans("[],", "   ")).split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 19):
            raise InputError(f"expected token ids, whole numbers from 0, got {word[:60]!r} on line {line}")
    return [int(word) for word in words]
