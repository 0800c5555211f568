"""`llmcli convert`: the same model in another precision, packed so that it opens at once, or as a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llmcli.commands import terminal
from llmcli.commands.options import (
    WRITES,
    ModelChoice,
    define,
    model_options,
    option,
    quantize_option,
    verbosity_options,
)
from llmcli.commands.progress import quiet_hub
from llmcli.errors import InputError, ResourceError


@define(
    "convert",
    examples=[
        ("half the size of float32", "llmcli convert ./model -o ./model-bf16 --dtype bfloat16"),
        ("a model that opens at once, for scripts that start often", "llmcli convert gpt2 -o gpt2-packed --packed"),
        ("packed and in 8 bits", "llmcli convert gpt2 -o gpt2-int8-packed --packed --quantize int8"),
        ("for llama.cpp, in its 4 bits", "llmcli convert ./model -o model.gguf --format gguf --quantize int4"),
    ],
)
@click.argument("source", required=False, metavar="[MODEL]")
@option("-o", "--output", required=True, metavar="PATH", help="Directory of the new model, or the GGUF file.")
@option(
    "--format",
    type=click.Choice(["safetensors", "gguf"]),
    help="A directory of Hugging Face's layout, or one file for llama.cpp. [default: by the ending of the output]",
)
@option("--packed", is_flag=True, help="Store the matrices as the CPU kernels read them.")
@quantize_option
@model_options
@option("--json", is_flag=True, help="Print the summary as JSON.")
@verbosity_options
def command(source: str | None, output: str, format: str | None, packed: bool, choice: ModelChoice, json: bool) -> None:
    """Save MODEL in the precision of --dtype, as a directory of one safetensors file, --packed, or as a GGUF file.

    A packed model is for inference with llmcli, on any CPU, in the precision it was packed in; keep the one it was
    made from. What is written is read again, and gives the same logits, before it appears.

    In a GGUF file the tokenizer and the chat template are inside, and --quantize int8 or int4 writes Q8_0 or Q4_0.
    """
    if source is not None and choice.model is not None:
        raise InputError("expected one model, got MODEL and --model")
    gguf = format == "gguf" or (format is None and output.endswith(".gguf"))
    if packed and gguf:
        raise InputError("expected --packed or a GGUF file, got both; llama.cpp packs for itself")
    if choice.quantize is not None and not (packed or gguf):
        raise InputError("--quantize here goes with --packed or --format gguf; 'llmcli quantize' saves a directory")
    choice = replace(choice, model=source if source is not None else choice.model)
    choice.prepare()
    from llmcli import conversion, loading
    from llmcli.checkpoints import directory
    from llmcli.ops import registry

    if packed and registry.kernels is None:
        raise ResourceError("--packed: expected the kernels that read packed matrices; this installation has none")
    quiet_hub()
    name = "default" if choice.model is None else choice.model
    target, path = Path(output), loading.find(name, offline=choice.offline)
    (directory.check_file if gguf else directory.check_output)(target, path)
    with terminal.open_output() as out:
        wanted: dict[str, Any] = {"device": "cpu", "offline": choice.offline, "pack": packed, "kinds": WRITES}
        old = loading.load(name, **wanted)
        new = loading.load(name, dtype=choice.dtype, quantize=None if gguf else choice.quantize, **wanted)
        if gguf:
            new = conversion.save_gguf(new, target, choice.quantize)
        else:
            conversion.save(new, target)
        summary = {
            "schema": "llmcli/convert/1",
            "model": name,
            "output": output,
            "format": "gguf" if gguf else "safetensors",
            "packed": packed,
            "dtype": str(new.dtype).removeprefix("torch."),
            "quantized": choice.quantize if gguf else new.quantized,
            "bytes_before": directory.size(path),
            "bytes_after": directory.size(target),
            "logits_change": conversion.change(old, new),
        }
        out.write(terminal.to_json(summary) if json else as_text(summary))


def as_text(summary: dict[str, Any]) -> str:
    """One line about the model."""
    before, after = (terminal.size(summary[name]) for name in ("bytes_before", "bytes_after"))
    what = " ".join(
        part for part in (summary["dtype"], summary["quantized"], "packed" if summary["packed"] else "") if part
    )
    change = summary["logits_change"]
    logits = "the same logits" if change == 0 else f"logits change by at most {100 * change:.2g} % of their range"
    return f"{summary['output']}: {what}, {after} from {before}, {logits}\n"
