"""What commands share that answer texts in order: a text per line in, an answer for each out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options, terminal
from llmcli.commands.parameters import Function
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.data.examples import Labelled


def line_options(function: Function) -> Function:
    """Add --batch-size, --encoding-errors, the formats of the answers and the verbosity."""
    for decorator in reversed(
        (
            options.option(
                "--batch-size",
                type=click.IntRange(1, 4096),
                default=32,
                help="Texts read together; changes the speed only.",
            ),
            options.encoding_options[0],
            options.output_options("text", "json", "jsonl"),
            options.verbosity_options,
        )
    ):
        function = decorator(function)
    return function


def read(files: Sequence[str], errors: str) -> Iterator[str]:
    """The texts of all files in order, of stdin without any. Raises InputError when nobody gave one."""
    if not files and terminal.stdin_is_terminal():
        raise InputError("expected texts, got none; name files, or pipe a text per line ('-' is stdin)")
    return (text for path in files or ("-",) for text in texts(path, errors))


def texts(path: str, errors: str) -> Iterator[str]:
    """The lines of a file or of stdin without their ends, or the texts of a JSONL file."""
    from llmcli.data import examples

    if path.endswith(".jsonl"):
        for name, record in examples.split(terminal.read_text(path, errors), path, jsonl=True):
            yield examples.string(record, "text", name)
        return
    for number, line in enumerate(terminal.read_lines(path), 1):
        source = f"line {number} of {'standard input' if path == '-' else path}"
        yield terminal.decode(line.rstrip(b"\n").removesuffix(b"\r"), source, errors)


def labelled(files: Sequence[str], errors: str) -> Iterator[Labelled]:
    """The texts with their labels of all JSONL files in order, of stdin without any. Raises InputError."""
    from llmcli.data import examples

    for path in files or ("-",):
        name = "standard input" if path == "-" else path
        for place, record in examples.split(terminal.read_text(path, errors), name, jsonl=True):
            yield examples.labelled(record, place)


def warn_cut(n: int, limit: int) -> None:
    """Say that texts were too long for a model that reads `limit` tokens."""
    if n:
        terminal.note(f"warning: {n} texts lost their end: this model reads {limit} tokens")


def write(
    results: Iterable[dict[str, Any]],
    spell: Callable[[dict[str, Any]], str],
    head: dict[str, Any],
    engine: dict[str, Any],
    *,
    what: str,
    format: str,
    output: str | None,
) -> None:
    """Write each result as text or as a line of JSON when it comes, or all in one document below its `head`."""
    kept = []
    with terminal.open_output(output) as out, Progress(what, unit="texts") as progress:
        for number, result in enumerate(results, 1):
            progress(number)
            if format == "json":
                kept.append(result)
            else:
                out.write(terminal.to_json(result, indent=None) if format == "jsonl" else spell(result))
        if format == "json":
            out.write(terminal.to_json({**head, "results": kept, "llmcli": engine}))
