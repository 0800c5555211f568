"""`llmcli data`: training data, made ready as a step of its own."""

from __future__ import annotations

import click

from llmcli.commands import learning, terminal
from llmcli.commands.options import Command, Group, Number, option, verbosity_options
from llmcli.commands.progress import Progress
from llmcli.errors import InputError


@click.command(
    "data",
    cls=Group,
    subcommand_metavar="prepare …",
    examples=[("a clean JSONL from a directory", "llmcli data prepare notes/ -o clean.jsonl")],
)
def command() -> None:
    """Make training data ready: normalise it, drop what is no use, and say what was dropped and why."""


@command.command(
    "prepare",
    cls=Command,
    short_help="Normalise, filter, drop duplicates.",
    examples=[
        (
            "texts of at least 200 characters, mostly letters",
            "llmcli data prepare web.jsonl --min-chars 200 --min-letters 0.7",
        ),
        ("a report for a machine beside the data", "llmcli data prepare notes/ -o clean.jsonl --report dropped.json"),
    ],
)
@click.argument("files", nargs=-1, metavar="[FILES]...")
@option("--normalize/--no-normalize", default=True, help="Unicode NFC, line ends, control characters, of texts only.")
@option("--min-chars", type=click.IntRange(1), default=1, help="Drop shorter ones.")
@option("--max-chars", type=click.IntRange(1), help="Drop longer ones.")
@option("--min-letters", type=Number(0, 1), default=0.0, help="Drop those with a smaller share of letters and spaces.")
@option("--charset", metavar="NAME", help="Drop those with a character that this encoding lacks: ascii, latin-1, …")
@option("--near", type=Number(0, 1), default=0.8, help="Drop what shares so much with an earlier one; 0 keeps it.")
@option("--report", metavar="FILE", help="Write as JSON what was dropped and why.")
@option("-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE instead of stdout; '-' is stdout.")
@verbosity_options
def prepare(
    files: tuple[str, ...],
    normalize: bool,
    min_chars: int,
    max_chars: int | None,
    min_letters: float,
    charset: str | None,
    near: float,
    report: str | None,
    output: str | None,
) -> None:
    """Read .txt and .jsonl files, directories or '-' and write the records that stay as JSONL, in order.

    Of records that are alike but for case and white space, or that share --near of their runs of five words, the first
    one stays. A table of what was dropped goes to stderr.
    """
    if not files:
        raise InputError("expected texts or records, got none; name files, or '-' for standard input")
    from llmcli.data import cleaning

    rules = cleaning.Rules(normalize, min_chars, max_chars, min_letters, near, charset)
    found = cleaning.Report(rules)
    with terminal.open_output(output) as out, Progress("preparing", unit="records") as progress:
        for record in cleaning.clean(learning.records(files), rules, found):
            out.write(terminal.to_json(record, indent=None))
            progress(found.n_in)
        if not found.n_out:
            raise InputError(f"none of {found.n_in} records stayed: {', '.join(found.dropped) or 'there were none'}")
    if report is not None:
        with terminal.open_output(report) as file:
            file.write(terminal.to_json(found.document()))
    rows = [[reason, str(one["n"]), ", ".join(one["first"][:2])] for reason, one in sorted(found.dropped.items())]
    if rows:
        terminal.note(terminal.table(["dropped", "records", "such as"], rows, right=[1]).rstrip())
    terminal.note(
        f"{found.n_out} of {found.n_in} records stayed, {found.n_chars_out / max(1, found.n_chars_in):.1%} of the text"
    )
