"""What `bench` and its subcommands share: lists of sizes and precisions, formats of the output, warnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.parameters import Function, option
from llmcli.commands.terminal import Writer, is_verbose, note, table, to_json
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.benchmarking.model_speed import SpeedTest

FORMATS = ("text", "json", "jsonl", "csv", "md", "github-benchmark")
DTYPES = ("float32", "bfloat16", "float16")


class Sizes(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A list of sizes: `a,b`, `a-b`, `a-b+s`, `a-b*m`."""

    name = "sizes"

    def __init__(self, minimum: int = 0) -> None:
        self.minimum = minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The sizes in order, without repeats."""
        if isinstance(value, list):
            return value
        from llmcli.benchmarking.sizes import parse_sizes

        try:
            return parse_sizes(str(value), minimum=self.minimum)
        except InputError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "LIST"


class Dtypes(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A list of precisions."""

    name = "dtypes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """The names in order, without repeats."""
        names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
        for name in names:
            if name not in ("auto", *DTYPES):
                self.fail(f"expected a list of auto, {', '.join(DTYPES)}, got {name!r}", param, ctx)
        return list(dict.fromkeys(names))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "LIST"


def test_options(defaults: tuple[int, int]) -> Callable[[Function], Function]:
    """Add the flags of what is measured, beside -m: a random shape, sizes, depths, batches."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(
            (
                option(
                    "--random",
                    metavar="SHAPE",
                    help="No checkpoint: random weights in the shape of gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama "
                    "or a config.json.",
                ),
                option(
                    "--prompt-tokens",
                    type=Sizes(),
                    help=f"Tokens to read; 0 for no such test. [default: {defaults[0]}]",
                ),
                option(
                    "--gen-tokens", type=Sizes(), help=f"Tokens to write; 0 for no such test. [default: {defaults[1]}]"
                ),
                option("-d", "--depth", type=Sizes(), default="0", help="Tokens in the cache before the clock starts."),
                option(
                    "--batch-size",
                    type=Sizes(1),
                    default="1",
                    help="Sequences at once; tokens/s are summed over them.",
                ),
            )
        ):
            function = decorator(function)
        return function

    return decorate


def emit(writer: Writer, format: str, kind: str, document: dict[str, Any]) -> None:
    """Write {interrupted, environment, kernels, ceilings, results} in the format that was asked for."""
    from llmcli.benchmarking import tables

    results: list[dict[str, Any]] = document["results"]
    shared = {"kernels": document["kernels"], "environment": document["environment"]}
    lines = [{"schema": f"llmcli/{kind}/1"} | shared | result for result in results]
    columns, row = (
        (tables.SPEED_COLUMNS, tables.speed_row) if kind == "bench" else (tables.KERNEL_COLUMNS, tables.kernel_row)
    )
    rows = [row(result) for result in results]
    if format == "json":
        writer.write(to_json({"schema": f"llmcli/{kind}/1"} | document))
    elif format == "jsonl":
        writer.write("".join(to_json(line, indent=None) for line in lines))
    elif format == "csv":
        writer.write(tables.to_csv(lines))
    elif format == "md":
        writer.write(tables.markdown(columns, rows))
    elif format == "github-benchmark":
        writer.write(tables.github_benchmark(results))
    else:
        numbers = [index for index, name in enumerate(columns) if name in tables.NUMBERS]
        writer.write(table(columns, rows, right=numbers))
        writer.write("\n" + tables.describe(document["environment"], document["ceilings"]))


def complain(results: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Doubtful figures, on stderr: how many of the (name, warnings), each of them with -v."""
    doubtful = [(name, warnings) for name, warnings in results if warnings]
    for name, warnings in doubtful if is_verbose() else []:
        for warning in warnings:
            note(f"warning: {name}: {warning}")
    if doubtful and not is_verbose():
        name, warnings = doubtful[0]
        note(f"warning: {len(doubtful)} of {len(results)} are doubtful, such as {name}: {warnings[0]} (-v shows all)")


def warn_of_load() -> None:
    """Another program's work is in every figure."""
    from llmcli.benchmarking.environment import available_cores, load_average

    load = load_average()
    if load and load[0] > 0.5 * available_cores():
        note(
            f"warning: the load average is {load[0]:.1f} on {available_cores()} cores: other work disturbs the figures"
        )


def plan_tests(
    context: int,
    defaults: tuple[int, int],
    *,
    prompt_tokens: list[int] | None,
    gen_tokens: list[int] | None,
    depth: list[int],
    batch_size: list[int],
    threads: list[int] | None,
) -> list[SpeedTest]:
    """The tests; `defaults`, tokens to read and to write, shrink to what the context leaves at the deepest depth."""
    import torch

    from llmcli.benchmarking.model_speed import speed_tests

    deepest = max(depth)
    prompts = [min(defaults[0], max(1, context - deepest))] if prompt_tokens is None else prompt_tokens
    generations = [min(defaults[1], max(1, context - (deepest or 1)))] if gen_tokens is None else gen_tokens
    return speed_tests(prompts, generations, depth, batch_size, threads or [torch.get_num_threads()], context=context)
