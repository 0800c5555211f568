"""`llmcli bench`: how fast a model reads prompts (prefill) and writes tokens (decode)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from llmcli.commands.bench_compare import compare
from llmcli.commands.bench_kernels import kernels
from llmcli.commands.measuring import FORMATS, Dtypes, Sizes, complain, emit, plan_tests, test_options, warn_of_load
from llmcli.commands.options import (
    Command,
    ModelChoice,
    cache_dtype_option,
    device_option,
    model_option,
    offline_option,
    option,
    output_options,
    quantize_option,
    require_kernels_option,
    verbosity_options,
)
from llmcli.commands.progress import Progress
from llmcli.commands.terminal import open_output
from llmcli.errors import InputError

DEFAULTS = 512, 128  # tokens to read and to write


class Bench(Command, click.Group):
    """A command that also has subcommands."""


@click.command(
    "bench",
    cls=Bench,
    invoke_without_command=True,
    subcommand_metavar="[kernels …|compare …]",
    examples=[
        ("prefill of 512 tokens and decode of 128 with the embedded model", "llmcli bench"),
        ("decode at growing depths, in two precisions", "llmcli bench -m gpt2 --dtype float32,bfloat16 -d 0-896+128"),
        ("the embedded model in 4 bits", "llmcli bench --quantize int4"),
        ("decode at depth with a cache of 8 bits", "llmcli bench -m gpt2 -d 880 --gen-tokens 64 --cache-dtype int8"),
        ("the shape of GPT-2 with random weights", "llmcli bench --random gpt2 --batch-size 1-8*2 --json"),
        ("single operators beside torch's", "llmcli bench kernels"),
    ],
)
@model_option
@test_options(DEFAULTS)
@option("-r", "--repetitions", type=click.IntRange(1, 1000), default=7, metavar="N", help="Samples per test.")
@option("--warmup", type=click.IntRange(0, 100), default=1, metavar="N", help="Samples that are thrown away first.")
@option("--dtype", type=Dtypes(), default="auto", help="Precision of weights and activations.")
@option("-t", "--threads", type=Sizes(1), help="CPU threads. [default: torch's]")
@quantize_option
@cache_dtype_option
@device_option
@offline_option
@require_kernels_option
@output_options(*FORMATS)
@verbosity_options
@click.pass_context
def command(ctx: click.Context, /, format: str, output: str | None, **flags: Any) -> None:
    """Measure how fast a model reads prompts (prefill) and writes tokens (decode).

    Sizes, depths, batch sizes, threads and precisions take lists: 128, 1,8,64, 0-1024+256, 1-512*2. The tests take
    turns, so that slow spells meet all of them. Reports the median, its 95 % interval (six repetitions or more), and
    the percentage of what this machine's memory and matrix units allow, measured in the same run.
    """
    if ctx.invoked_subcommand is not None:
        return
    if flags["random"] and flags["model"]:
        raise InputError("expected --model or --random, got both")
    with open_output(output) as writer:
        document = measure(**flags)
        emit(writer, format, "bench", document)
    if document["interrupted"]:
        ctx.exit(130)


command.add_command(kernels)
command.add_command(compare)


def measure(
    *,
    model: str | None,
    random: str | None,
    dtype: list[str],
    quantize: str | None,
    cache_dtype: str,
    device: str,
    offline: bool,
    require_kernels: bool,
    repetitions: int,
    warmup: int,
    **sizes: Any,
) -> dict[str, Any]:
    """The document with every finished test; after Ctrl-C, with the samples taken so far."""

    from llmcli.benchmarking.ceilings import Ceilings
    from llmcli.benchmarking.environment import environment, kernels_in_use
    from llmcli.benchmarking.model_speed import ModelBenchmark
    from llmcli.device import choose_device

    if device == "auto":
        device = choose_device(device).type
    warn_of_load()
    ceilings, facts, served = Ceilings(device), environment(), kernels_in_use(device.partition(":")[0])
    results: list[dict[str, Any]] = []
    warnings: list[tuple[str, Sequence[str]]] = []
    interrupted = False
    for name in dtype:
        choice = ModelChoice(device, name, None, require_kernels, model, offline, quantize, cache_dtype)
        loaded, label = load(choice, random)
        benchmark = ModelBenchmark(loaded, plan_tests(loaded.config.n_positions, DEFAULTS, **sizes))
        try:
            benchmark.measure_ceilings(ceilings)
            total = len(benchmark.tests) * (warmup + repetitions)
            with Progress("bench", total=total, unit="samples") as progress:
                for done in benchmark.run(repetitions, warmup=warmup):
                    progress(done)
            ceilings.measure_again()
        except KeyboardInterrupt:
            interrupted = True
        for result in benchmark.results(ceilings):
            where = {"kernels": served, "environment": facts | {"threads": result.test.n_threads}}
            results.append({"model": label} | result.to_json() | where)
            warnings.append((f"{result.test.name} {result.dtype}", result.warnings))
        if interrupted:
            break
    complain(warnings)
    return {
        "interrupted": interrupted,
        "environment": facts,
        "kernels": served,
        "ceilings": ceilings.to_json(),
        "results": results,
    }


def load(choice: ModelChoice, random: str | None) -> tuple[Any, str]:
    """The model and its name."""
    if random is None:
        loaded = choice.load()
        return loaded.model, loaded.name
    import torch

    from llmcli.benchmarking.random_model import random_model

    choice.prepare()
    dtype = torch.float32 if choice.dtype == "auto" else getattr(torch, choice.dtype)
    kind: dict[str, Any] = {"quantize": choice.quantize, "cache_dtype": choice.cache_dtype}
    return random_model(random, dtype=dtype, device=choice.device, **kind), f"random {random}"
