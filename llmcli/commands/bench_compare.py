"""`llmcli bench compare`: a gate for CI, from two documents of `bench --json`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from llmcli.commands.options import Command, Number, option, output_options, verbosity_options
from llmcli.commands.terminal import note, open_output, read_text, table, to_json
from llmcli.errors import GateFailed, Inconclusive


@click.command(
    "compare",
    cls=Command,
    short_help="Judge two runs: what became slower.",
    examples=[
        ("before a change, and after it to after.json", "llmcli bench --json -o before.json"),
        ("fail when something became slower", "llmcli bench compare before.json after.json"),
        ("only a loss of more than 10 % counts", "llmcli bench compare before.json after.json --tolerance 10"),
    ],
)
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@option(
    "--tolerance",
    type=Number(0, 100, max_open=True),
    default=5.0,
    metavar="PERCENT",
    help="A loss that counts as none.",
)
@output_options("text", "json", "md")
@verbosity_options
def compare(first: str, second: str, tolerance: float, format: str, output: str | None) -> None:
    """Say what became faster or slower from FIRST to SECOND, two files of 'bench --json' or 'bench kernels --json'.

    A test is slower when the whole interval of its change lies below the tolerance, and no slower when the whole
    interval lies above it. Exits with 3 when a test is slower, with 4 when none is but one is inconclusive: measure
    again with more repetitions on a quieter machine.
    """
    from llmcli.benchmarking import comparison, tables

    before, after = (comparison.parse(read_text(path), path) for path in (first, second))
    changes, alone = comparison.compare(before, after, tolerance=tolerance / 100)
    machines = [(document.get("environment") or {}).get("cpu") for document in (before, after)]
    if machines[0] != machines[1]:
        note(f"warning: two machines, {machines[0]} and {machines[1]}: the change is also that of the machine")
    if alone:
        note(f"warning: {len(alone)} tests are in only one of the files, such as {alone[0]}")
    count = Counter(change.verdict for change in changes)
    verdict = "slower" if count["slower"] else "inconclusive" if count["inconclusive"] else "no slower"
    with open_output(output) as out:
        rows = [change.row() for change in changes]
        if format == "json":
            results = [asdict(change) for change in changes]
            document = {"tolerance_pct": tolerance, "verdict": verdict, "only_in_one": alone, "results": results}
            out.write(to_json({"schema": "llmcli/bench-compare/1", **document}))
        elif format == "md":
            out.write(tables.markdown(comparison.COLUMNS, rows))
        else:
            out.write(table(comparison.COLUMNS, rows, right=range(1, 5)))
    worst = min(changes, key=lambda change: change.ratio)
    if verdict == "slower":
        raise GateFailed(
            f"{count['slower']} of {len(changes)} tests are more than {tolerance:g} % slower, "
            f"the worst is {worst.test} at {worst.ratio:.3f} of its speed"
        )
    if verdict == "inconclusive":
        raise Inconclusive(
            f"{count['inconclusive']} of {len(changes)} tests cannot be judged at {tolerance:g} %; "
            "measure again with more repetitions (-r) on a quieter machine"
        )
