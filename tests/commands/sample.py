"""A command for the tests of the frame: fails, waits or writes in every way that a real one can."""

from __future__ import annotations

import contextlib
import time

import click

from llmcli import errors
from llmcli.commands.options import (
    ModelChoice,
    define,
    model_options,
    output_options,
    sampling_options,
    verbosity_options,
)
from llmcli.commands.progress import Progress
from llmcli.commands.terminal import interruptible, note, open_output, read_prompt

FAILURES = {
    "input": errors.InputError("expected a, got b; do c"),
    "gate": errors.GateFailed("slower\nby half"),
    "noisy": errors.Inconclusive("too noisy"),
    "model": errors.ModelError("no such model"),
    "resource": errors.ResourceError("no kernel"),
    "bug": TypeError("surprise"),
    "memory": MemoryError(),
    "torch-memory": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried"
    ),
    "gpu-memory": RuntimeError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
    ),
    "library": ImportError("libtorch.so: cannot open shared object file", name="torch"),
    "mapping": ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    "interrupt": KeyboardInterrupt(),
    "full": OSError(28, "No space left on device", "out.txt"),
    "missing": FileNotFoundError(2, "No such file or directory", "in.txt"),
    "denied": PermissionError(13, "Permission denied", "in.txt"),
    "pipe": BrokenPipeError(32, "Broken pipe"),
}


@define("sample", examples=[("fail", "llmcli sample --fail bug")])
@click.argument("prompt", required=False)
@click.option("-p", "flag", help="The prompt.")
@click.option("-f", "file", help="A file.")
@click.option("--encoding-errors", default="strict", help="As Python's.")
@click.option("--escape", is_flag=True, help="Escapes.")
@click.option("--fail", type=click.Choice(list(FAILURES)), help="Raise.")
@click.option("--wait", is_flag=True, help="Wait for a signal, before and after asking for a gentle stop.")
@click.option("--gentle", is_flag=True, help="Stop after the current step.")
@click.option("--endless", is_flag=True, help="Write for ever.")
@click.option("--steps", default=0, help="Steps of a tenth of a second, with progress.")
@click.option("--convert", is_flag=True, help="Turn an interrupt into an ImportError, as some imports do.")
@click.option("--lose", is_flag=True, help="Swallow an interrupt, as others do.")
@model_options
@sampling_options
@output_options("text", "json", "csv")
@verbosity_options
def command(
    prompt: str | None, flag: str | None, file: str | None, encoding_errors: str, escape: bool, fail: str | None,
    wait: bool, gentle: bool, endless: bool, steps: int, convert: bool, lose: bool, choice: ModelChoice, format: str,
    output: str | None, **sampling: float,
) -> None:  # fmt: skip
    """Do what a test asks for."""
    if fail:
        raise FAILURES[fail]
    if wait or gentle or endless:
        block(wait, gentle, endless, convert, output)
    if lose:
        print("begun", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)
        if convert:
            with interruptible():
                time.sleep(60)
    with Progress("stepping", total=steps, unit="steps") as progress:
        for step in range(steps):
            time.sleep(0.1)
            progress(step + 1, note=lambda: "loss 1.0")
    if steps:
        return
    text = read_prompt(prompt, flag, file, errors=encoding_errors, escape=escape)
    note("a note")
    with open_output(output) as out:
        out.write(f"{format} {choice.model} {choice.threads} {sampling['seed']} {sampling['temperature']} {text}")


def block(wait: bool, gentle: bool, endless: bool, convert: bool, output: str | None) -> None:
    """Hold the process until a signal or a closed pipe ends it."""
    if wait:
        try:
            with open_output(output) as out:
                out.write("begun\n")
                time.sleep(60)
        except KeyboardInterrupt:
            if convert:
                raise ImportError("initialization failed") from None
            raise
    elif gentle:
        with interruptible() as interrupt, open_output(output) as out:
            out.write("begun\n")
            while not interrupt.stop_requested:
                time.sleep(0.01)
            out.write("ended\n")
            if convert:
                time.sleep(60)
    elif endless:
        with open_output(output) as out:
            while True:
                out.write("line\n")
