"""`llmcli bench kernels`: single operators beside torch's, and their share of the machine's ceilings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from llmcli.commands.measuring import FORMATS, Dtypes, complain, emit, warn_of_load
from llmcli.commands.options import (
    Command,
    Engine,
    Number,
    option,
    output_options,
    require_kernels_option,
    verbosity_options,
)
from llmcli.commands.progress import Progress
from llmcli.commands.terminal import open_output
from llmcli.errors import InputError

OPERATORS = (
    "attention",
    "softmax",
    "layer_norm",
    "add_layer_norm",
    "rms_norm",
    "gelu",
    "silu_gate",
    "argmax",
    "matmul",
    "linear_cross_entropy",
    "linear_logprobs",
)


@click.command(
    "kernels",
    cls=Command,
    short_help="Time single operators beside torch's.",
    examples=[
        ("every operator", "llmcli bench kernels"),
        ("attention in bfloat16 only", "llmcli bench kernels attention --dtype bfloat16"),
        ("a file in that folder, named by this machine's CPU", "llmcli bench kernels --json -o benchmarks/results/"),
    ],
)
@click.argument("operators", nargs=-1, type=click.Choice(OPERATORS), metavar="[OPERATOR]…")
@option("--dtype", type=Dtypes(), default="float32,bfloat16", help="Precision of the inputs.")
@option("-t", "--threads", type=click.IntRange(1, 4096), metavar="N", help="CPU threads. [default: torch's]")
@option("-r", "--repetitions", type=click.IntRange(1, 1000), default=21, metavar="N", help="Rounds per operator.")
@option(
    "--max-time",
    type=Number(0, 86400),
    default=4.0,
    metavar="SECONDS",
    help="Per operator; ends its rounds early, after six at least.",
)
@option("--warmup", type=click.IntRange(0, 100), default=1, metavar="N", help="Rounds that are thrown away first.")
@option("--shrink", type=click.IntRange(1), default=1, metavar="N", help="Divide the sizes by N: a trial, no verdicts.")
@require_kernels_option
@output_options(*FORMATS)
@verbosity_options
@click.pass_context
def kernels(
    ctx: click.Context,
    /,
    operators: Sequence[str],
    dtype: list[str],
    threads: int | None,
    require_kernels: bool,
    format: str,
    output: str | None,
    **run: Any,
) -> None:
    """Time single operators beside torch's, in alternating order within one run.

    Each is one of attention, softmax, layer_norm, add_layer_norm, rms_norm, gelu, silu_gate, argmax, matmul,
    linear_cross_entropy and linear_logprobs (default: all), and its results are first checked against torch's (exit 3
    when they differ). Reports the ratio of the times, the percentage of the machine's ceiling (memory bandwidth or
    matrix product) in the same run, and whether the goals are met: "inconclusive" when the 95 % interval holds the
    goal. -o FOLDER writes a file named by the CPU.
    """
    if "auto" in dtype:
        raise InputError("--dtype auto needs a model: expected float32, bfloat16 or float16")
    Engine("cpu", "auto", threads, require_kernels).prepare()
    warn_of_load()
    from llmcli.benchmarking.environment import environment, machine_name

    facts = environment()
    if output is not None and os.path.isdir(output):
        output = os.path.join(output, f"{machine_name(facts)}.json")
    with open_output(output) as writer:
        document = measure(operators, dtype, facts, **run)
        emit(writer, format, "bench-kernels", document)
    if document["interrupted"]:
        ctx.exit(130)


def measure(
    operators: Sequence[str],
    dtypes: Sequence[str],
    facts: dict[str, Any],
    *,
    repetitions: int,
    warmup: int,
    shrink: int,
    max_time: float,
) -> dict[str, Any]:
    """The document with every finished operator; after Ctrl-C, without the one that was being timed."""
    import torch

    from llmcli.benchmarking.ceilings import Ceilings
    from llmcli.benchmarking.environment import kernels_in_use
    from llmcli.benchmarking.kernel_cases import kernel_cases
    from llmcli.benchmarking.kernel_speed import KernelResult, measure_kernel

    ceilings, interrupted = Ceilings(), False
    results: list[KernelResult] = []
    cases = kernel_cases(operators, [getattr(torch, name) for name in dtypes], divide=shrink)
    limits: dict[str, Any] = {"rounds": repetitions, "warmup": warmup, "budget_ns": 1e9 * max_time}
    try:
        with Progress("bench kernels", total=len(cases), unit="operators") as progress:
            for case in cases:
                results.append(measure_kernel(case, ceilings, **limits))
                progress(len(results))
    except KeyboardInterrupt:
        interrupted = True
    complain([(result.case.name, result.warnings) for result in results])
    return {
        "interrupted": interrupted,
        "environment": facts,
        "kernels": kernels_in_use("cpu"),
        "ceilings": ceilings.to_json(),
        "results": [result.to_json() for result in results],
    }
