"""`llmcli doctor`: versions, hardware, who serves each operator, caches, environment; and what is wrong."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import click

from llmcli.commands.options import (
    Engine,
    define,
    device_option,
    output_options,
    require_kernels_option,
    verbosity_options,
)
from llmcli.errors import ModelError

LABEL = 10  # width of the left column


@define(
    "doctor",
    examples=[
        ("what is installed, and does it fit this machine", "llmcli doctor"),
        ("in CI: fail when an operator has no kernel", "llmcli doctor --require-kernels > /dev/null"),
        ("for a bug report", "llmcli doctor --json > doctor.json"),
    ],
)
@output_options("text", "json")
@device_option
@require_kernels_option
@verbosity_options
def command(format: str, output: str | None, device: str, require_kernels: bool) -> None:
    """Show what llmcli runs on, and check this installation.

    Exits with 5 when the embedded model is damaged, and with 6 when --require-kernels is given and an operator would
    run on torch's fallback.
    """
    from llmcli.commands.terminal import open_output, to_json
    from llmcli.diagnosis import diagnose

    document = diagnose()
    document["problems"] += unread_variables()
    with open_output(output) as out:
        out.write(to_json(document) if format == "json" else describe(document))
    Engine(device=device, dtype="auto", threads=None, require_kernels=require_kernels).prepare(training=True)
    if document["default_model"]["problem"]:
        raise ModelError(f"default model: {document['default_model']['problem']}")


def describe(document: dict[str, Any]) -> str:
    """The document as a page of text, 80 columns wide."""
    from llmcli.commands.terminal import size, table

    cpu, memory, kernels = document["cpu"], document["memory"], document["kernels"]
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in document["versions"].items())
    free = f", {size(memory['available_bytes'])} available" if memory["available_bytes"] else ""
    gpus = [f"{gpu['device']} {gpu['name']}, {size(gpu['memory_bytes'])}" for gpu in document["cuda"]]
    built = "none"
    if kernels["kernels"]:
        built = f"{kernels['compiler']}, torch {kernels['torch']}, stable ABI {kernels['stable_abi']}"
    model = document["default_model"]
    cache = document["cache"]
    pairs = [
        ("versions", versions),
        ("system", document["os"]),
        ("cpu", f"{cpu['name'] or cpu['machine']}; {cpu['cores']} cores, {cpu['threads']} threads in use"),
        ("features", ", ".join(cpu["features"]) or "unknown"),
        ("isa", f"{cpu['isa']} in use, of {', '.join(cpu['available_isas'])}" if cpu["isa"] else "torch's own"),
        ("memory", f"{size(memory['total_bytes'])}{free}" if memory["total_bytes"] else "unknown"),
        ("gpu", "; ".join(gpus) or "none"),
        ("kernels", built),
        ("model", f"{model['path']}: {'damaged' if model['problem'] else 'checksums match'}"),
        ("cache", f"{cache['path']}{'' if cache['exists'] else ' (nothing there yet)'}"),
    ]
    operators = document["operators"]
    devices = list(dict.fromkeys(operator["device"] for operator in operators))
    served = {(operator["name"], operator["device"]): operator["served_by"] for operator in operators}
    names = list(dict.fromkeys(operator["name"] for operator in operators))
    variables = [[name, "-" if value is None else value] for name, value in document["environment"].items()]
    from llmcli.diagnosis import VARIABLES

    parts = [
        "".join(wrap(label, text) for label, text in pairs),
        table(["OPERATOR", *devices], [[name, *(served[name, device] for device in devices)] for name in names]),
        table(["VARIABLE", "VALUE", "MEANING"], [[*row, VARIABLES[row[0]]] for row in variables]),
        "".join(wrap("problem", problem) for problem in document["problems"]) or "no problems found\n",
    ]
    return "\n".join(parts)


def wrap(label: str, text: str) -> str:
    """One fact under its label, folded to 80 columns."""
    lines = textwrap.wrap(text, 80 - LABEL, break_on_hyphens=False, break_long_words=False) or [""]
    return f"{label:{LABEL}}" + f"\n{'':{LABEL}}".join(lines) + "\n"


def unread_variables() -> list[str]:
    """A complaint about each LLMCLI_ variable that nothing reads, which is most likely a misspelt one."""
    import difflib

    from llmcli.diagnosis import VARIABLES

    context = click.get_current_context().find_root()
    read = {name for name in VARIABLES if name.startswith("LLMCLI_")} | flag_variables(context.command, context)
    problems = []
    for name in sorted(os.environ):
        if name.startswith("LLMCLI_") and name not in read:
            near = difflib.get_close_matches(name, read, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{name} is set, but nothing reads it{hint}")
    return problems


def flag_variables(command: click.Command, context: click.Context, prefix: str = "LLMCLI") -> set[str]:
    """The variables that set a flag of the command or of a command below it."""
    names = {
        f"{prefix}_{parameter.name}".upper()
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.allow_from_autoenv
    }
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                names |= flag_variables(below, context, f"{prefix}_{name}")
    return names
