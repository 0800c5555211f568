"""`llmcli verify kernels`: every kernel on every instruction set against float64."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from llmcli.commands.measuring import Dtypes
from llmcli.commands.options import Command, option, output_options, verbosity_options
from llmcli.commands.progress import Progress
from llmcli.commands.terminal import Writer, note, open_output, table, to_json
from llmcli.errors import GateFailed, InputError


@click.command(
    "kernels",
    cls=Command,
    short_help="Every kernel on every instruction set against float64.",
    examples=[("the errors of one precision, as JSON", "llmcli verify kernels --dtype bfloat16 --json")],
)
@option("--dtype", type=Dtypes(), default="float32,bfloat16,float16", help="Precisions of the inputs.")
@output_options("text", "json")
@verbosity_options
def kernels(dtype: list[str], format: str, output: str | None) -> None:
    """Run every operator's kernel on awkward shapes, on each instruction set that this machine has.

    Errors are in units of the last place (ULP) of the largest exact result, beside those of torch's operators in the
    same precision; more than twice torch's plus one ULP fails. Exits with 3 when a kernel fails, and with 6 where there
    are no kernels.
    """
    if "auto" in dtype:
        raise InputError("--dtype auto needs a model: expected float32, bfloat16 or float16")
    import torch

    from llmcli.verification import kernels as check

    with open_output(output) as out, Progress("verifying", unit="kernels") as progress:
        results = []
        for result in check.verify([getattr(torch, name) for name in dtype]):
            results.append(result)
            progress(len(results))
        bad, unchecked = [result for result in results if not result.passed], check.unchecked()
        rows = [{**asdict(result), "passed": result.passed} for result in results]
        cells = [
            [r.operator, r.isa, r.dtype, str(r.cases), f"{r.error:.2f}", f"{r.torch_error:.2f}",
             "ok" if r.passed else f"FAILED at {r.worst}"] for r in results
        ]  # fmt: skip
        columns = ["operator", "isa", "dtype", "cases", "ULP", "torch's", "verdict"]
        missing = check.without_kernel()
        verdict = "failed" if bad else "ok"
        facts = {"verdict": verdict, "unchecked": unchecked, "without_kernel": missing, "results": rows}
        emit(out, format, "kernels", facts, columns, cells)
    if missing:
        note(f"warning: no kernel for {', '.join(missing)}, which torch computes here")
    if unchecked:
        note(f"warning: no case checks {', '.join(unchecked)}")
    if bad:
        worst = max(bad, key=lambda result: result.error)
        raise GateFailed(
            f"{len(bad)} of {len(results)} checks failed, such as {worst.operator} on {worst.isa} in {worst.dtype}: "
            f"{worst.error:.3g} ULP, torch's {worst.torch_error:.3g}"
        )


def emit(
    out: Writer, format: str, kind: str, facts: dict[str, Any], columns: list[str], cells: list[list[str]]
) -> None:
    """Write a table for people, or a document."""
    if format == "json":
        out.write(to_json({"schema": f"llmcli/verify-{kind}/1", **facts}))
    else:
        right = [n for n, name in enumerate(columns) if name in ("cost %", "rows", "differ", "cases", "ULP", "torch's")]
        out.write(table(columns, cells, right=right))
