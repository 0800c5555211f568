"""`llmcli bench compare`: a gate for CI, from two sides sampled in turns, or from two documents of `bench --json`."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from typing import Any

import click

from llmcli.commands.measuring import plan_tests, test_options, warn_of_load
from llmcli.commands.options import (
    Command,
    Number,
    cache_dtype_option,
    device_option,
    model_option,
    offline_option,
    option,
    output_options,
    quantize_option,
    verbosity_options,
)
from llmcli.commands.progress import Progress
from llmcli.commands.terminal import Writer, note, open_output, read_text, table, to_json
from llmcli.errors import GateFailed, Inconclusive, InputError

DEFAULTS = 128, 8  # tokens to read and to write: short samples, for many rounds in the time there is
LIVE, STORED = 2.5, 5.0  # per cent: two runs apart are further apart
MEASURES = (
    "model", "random", "prompt_tokens", "gen_tokens", "depth", "batch_size", "dtype", "threads", "quantize",
    "cache_dtype", "device", "offline",
)  # fmt: skip


@click.command(
    "compare",
    cls=Command,
    short_help="Judge which of two is slower; exit 3 or 4.",
    examples=[
        ("two checkpoints", "llmcli bench compare gpt2 ./gpt2-int4"),
        ("two precisions of one model", "llmcli bench compare dtype=float32 dtype=bfloat16 -m gpt2"),
        ("one thread against two", "llmcli bench compare threads=1 threads=2"),
        ("two installations", "llmcli bench compare python=old/bin/python python=new/bin/python --time-budget 30"),
        ("whole command lines", "llmcli bench compare --commands 'gzip -9 <book.txt' 'llmcli compress book.txt'"),
        ("what two runs left in files", "llmcli bench compare --from-files before.json after.json"),
    ],
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@option("--from-files", is_flag=True, help="A and B are files of 'bench --json' or 'bench kernels --json'.")
@option("--commands", is_flag=True, help="A and B are command lines, timed from their start to their end.")
@option(
    "--tolerance",
    type=Number(0, 100, max_open=True),
    metavar="PERCENT",
    help=f"A loss that counts as none. [default: {LIVE:g}; {STORED:g} with --from-files]",
)
@option("--time-budget", type=Number(0, 86400, min_open=True), default=60.0, metavar="SECONDS", help="For everything.")
@model_option
@test_options(DEFAULTS)
@option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Precision of weights and activations.",
)
@option("-t", "--threads", type=click.IntRange(1, 4096), metavar="N", help="CPU threads. [default: torch's]")
@quantize_option
@cache_dtype_option
@device_option
@offline_option
@output_options("text", "json", "md", "github-benchmark")
@verbosity_options
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    first: str,
    second: str,
    from_files: bool,
    commands: bool,
    tolerance: float | None,
    time_budget: float,
    format: str,
    output: str | None,
    **flags: Any,
) -> None:
    """Say whether B is slower than A: exit 0 when it is not, 3 when it is, 4 when this machine cannot tell.

    A and B are words such as a model, dtype=bfloat16, quantize=int4, threads=2, python=PATH for another installation,
    or NAME=value for a variable; the flags hold for both. Each is kept warm in a process of its own; they are sampled
    in turns, A B B A, until every test is decided or the time is up. B is slower when the whole interval of its speed
    lies below A's less the tolerance, and no slower when the whole interval lies above.
    """
    from llmcli.benchmarking.comparison import overall

    if from_files and commands:
        raise InputError("expected --from-files or --commands, got both")
    given = [n for n in MEASURES if ctx.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE]
    if given and (from_files or commands):
        flag = "--" + given[0].replace("_", "-")
        raise InputError(f"{flag} is for models, and A and B are {'files' if from_files else 'command lines'}")
    loss = (STORED if from_files else LIVE) if tolerance is None else tolerance
    with open_output(output) as out:
        if from_files:
            document = from_stored(first, second, loss / 100)
        else:
            warn_of_load()
            document = sample_in_turns(first, second, commands, loss / 100, time_budget, flags)
            state_noise(document["results"])
        results = document["results"]
        verdict = overall([result["verdict"] for result in results])
        head = {"schema": "llmcli/bench-compare/1", "verdict": verdict, "tolerance_pct": loss}
        emit(out, format, head | document)
    if document.get("interrupted"):
        ctx.exit(130)
    slowest = sorted(results, key=lambda result: result["ratio"])
    if verdict == "regression":
        count = sum(result["verdict"] == "slower" for result in results)
        raise GateFailed(
            f"{count} of {len(results)} tests are more than {loss:g} % slower, "
            f"the worst is {slowest[0]['test']} at {slowest[0]['ratio']:.3f} of its speed"
        )
    if verdict == "inconclusive":
        count = sum(result["verdict"] == "inconclusive" for result in results)
        raise Inconclusive(
            f"{count} of {len(results)} tests cannot be judged at {loss:g} %; measure again on a quieter machine with "
            + ("more repetitions (-r)" if from_files else "a larger --time-budget or --tolerance")
        )


def state_noise(results: list[dict[str, Any]]) -> None:
    """Before any verdict: what this run could have found at all."""
    found = [(f"{row['smallest_slowdown_pct']:.1f} %", row["test"]) for row in results if row["smallest_slowdown_pct"]]
    if found:
        smallest = ", ".join(f"{size} ({test})" for size, test in found)
        note(f"noise: A against itself says that a loss of {smallest} or more would have been found")
    if short := [row for row in results if not row["smallest_slowdown_pct"]]:
        note(f"noise: too few rounds to tell ({short[0]['test']}: {short[0]['rounds']}); give more --time-budget")


def from_stored(first: str, second: str, tolerance: float) -> dict[str, Any]:
    """The document of two files."""
    from llmcli.benchmarking import comparison

    before, after = (comparison.parse(read_text(path), path) for path in (first, second))
    changes, alone = comparison.compare(before, after, tolerance=tolerance)
    if alone:
        note(f"warning: {len(alone)} tests are in only one of the files, such as {alone[0]}")
    return {"only_in_one": alone, "results": [asdict(change) for change in changes]}


def sample_in_turns(
    first: str, second: str, commands: bool, tolerance: float, time_budget: float, flags: dict[str, Any]
) -> dict[str, Any]:
    """The document of two sides that are sampled now; after Ctrl-C, of the rounds so far."""
    begin = time.perf_counter_ns()
    from llmcli.benchmarking import sides, verdicts

    with contextlib.ExitStack() as stack:
        if commands:
            both: list[Any] = [sides.CommandLine(line) for line in (first, second)]
            tests: list[Any] = ["command"]
        else:
            common = {key: flags[key] for key in sides.COMMON}
            parsed = [sides.parse_side(text, common, flags["threads"]) for text in (first, second)]
            both = [stack.enter_context(contextlib.closing(sides.WarmWorker(side))) for side in parsed]
            context = min(side.facts["context"] for side in both)
            sizes = {key: flags[key] for key in ("prompt_tokens", "gen_tokens", "depth", "batch_size")}
            tests = plan_tests(context, DEFAULTS, threads=[1], **sizes)
        calls = sides.warm_up(both, tests)
        trial = verdicts.Trial(
            tests,
            lambda side, test: both[side].sample(test, calls[test]),
            budget_ns=time_budget * verdicts.SECOND - (time.perf_counter_ns() - begin),
            tolerance=tolerance,
        )
        interrupted = False
        try:
            with Progress("bench compare", total=trial.budget_ns / verdicts.SECOND, unit="s") as progress:
                for spent in trial.run():
                    progress(spent / verdicts.SECOND)
        except KeyboardInterrupt:
            interrupted = True
            trial.look()
        return {
            "interrupted": interrupted,
            "time_budget_s": time_budget,
            "elapsed_s": round((time.perf_counter_ns() - begin) / verdicts.SECOND, 3),
            "level": 1 - verdicts.RISK,
            "method": verdicts.METHOD,
            "sides": [side.to_json() for side in both],
            "environment": both[0].environment(),
            "results": [{"test": sides.label(test)} | trial.to_json(test) for test in tests if trial.samples[test]],
        }


def emit(out: Writer, format: str, document: dict[str, Any]) -> None:
    """Write the document in the format that was asked for."""
    from llmcli.benchmarking import comparison, tables

    live = "sides" in document
    columns, row = (tables.VERDICT_COLUMNS, tables.verdict_row) if live else (comparison.COLUMNS, comparison.row)
    rows = [row(result) for result in document["results"]]
    if format == "json":
        out.write(to_json(document))
    elif format == "md":
        out.write(tables.markdown(columns, rows))
    elif format == "github-benchmark":
        out.write(tables.github_benchmark(document["results"]))
    else:
        out.write(table(columns, rows, right=range(1, len(columns) - 1)))
