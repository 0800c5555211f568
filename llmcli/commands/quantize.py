"""`llmcli quantize`: a model in, the same model in 8 or 4 bits out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal, texts
from llmcli.commands.options import ModelChoice, define, encoding_options, model_options, option, verbosity_options
from llmcli.commands.progress import Progress, quiet_hub
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.quantization import Matrix
    from llmcli.scoring import Rule


@define(
    "quantize",
    examples=[
        ("half the memory of 16 bits, nearly the same text", "llmcli quantize gpt2 -o gpt2-int8"),
        ("4 bits, and what they cost on your own text", "llmcli quantize gpt2 -o gpt2-int4 --to int4 --eval book.txt"),
        ("use it like any other model", 'llmcli generate -m gpt2-int4 "Once upon a time"'),
    ],
)
@click.argument("source", required=False, metavar="[MODEL]")
@option("-o", "--output", required=True, metavar="DIR", help="Directory of the new model.")
@option("--to", type=click.Choice(["int8", "int4"]), default="int8", help="What the matrices become.")
@option("--eval", multiple=True, metavar="FILE", help="Measure the change of perplexity on this text; '-' is stdin.")
@model_options
@texts.window_options
@encoding_options[0]
@option("--json", is_flag=True, help="Print the summary as JSON.")
@verbosity_options
def command(
    source: str | None,
    output: str,
    to: str,
    eval: tuple[str, ...],
    choice: ModelChoice,
    ctx_size: int | None,
    stride: int | None,
    batch_size: int | None,
    encoding_errors: str,
    json: bool,
) -> None:
    """Save MODEL with its matrices in 8 or 4 bits, as a directory that every command opens.

    Embeddings, positions, norms and biases keep their precision (or get that of --dtype), and the head has 8 bits in
    either. With --eval, both models score the same windows of the same texts, and the change of perplexity is printed
    with its paired 95 % interval.
    """
    if source is not None and choice.model is not None:
        raise InputError("expected one model, got MODEL and --model")
    choice = replace(choice, model=source if source is not None else choice.model)
    named = texts.read(eval, encoding_errors) if eval else []
    choice.prepare()
    from llmcli import loading, quantization, scoring

    quiet_hub()
    name = "default" if choice.model is None else choice.model
    target, path = Path(output), loading.find(name, offline=choice.offline)
    quantization.check_output(target, path)
    rule: Rule | None = None
    with terminal.open_output() as out:
        if named:
            original = choice.load()
            rule = texts.rule(None, ctx_size, stride, original.model.config.n_positions)
            documents, before = texts.score(original, named, rule, batch_size)
            del original
        plain = loading.load(name, device="cpu", dtype=choice.dtype, offline=choice.offline, pack=False)
        with Progress("quantising", unit="matrices") as progress:
            matrices = quantization.save(plain, to, target, progress)
        del plain
        summary = summarise(name, path, target, to, matrices)
        if rule is not None:
            new = replace(choice, model=output).load()
            _, after = texts.score(new, named, rule, batch_size)
            summary["evaluation"] = scoring.compare(documents, before, after, rule)
        out.write(terminal.to_json(summary) if json else as_text(summary))
    if not named:
        terminal.note("perplexity not measured: name a text with --eval FILE")


def summarise(model: str, path: Path, target: Path, to: str, matrices: list[Matrix]) -> dict[str, Any]:
    """The document, still without an evaluation."""
    from llmcli import quantization

    return {
        "schema": "llmcli/quantize/1",
        "model": model,
        "output": str(target),
        "to": to,
        "bytes_before": quantization.size(path),
        "bytes_after": quantization.size(target),
        "matrices": [asdict(matrix) for matrix in matrices],
        "evaluation": None,
    }


def as_text(summary: dict[str, Any]) -> str:
    """One line about the model and, where it was evaluated, one about its perplexity."""
    matrices = summary["matrices"]
    worst = max(matrices, key=lambda matrix: matrix["relative_error"])
    before, after = (terminal.size(summary[name]) for name in ("bytes_before", "bytes_after"))
    text = (
        f"{summary['output']}: {summary['to']}, {after} from {before}, {len(matrices)} matrices, which change by at "
        f"most {100 * worst['relative_error']:.2f} % ({worst['name']}, {worst['bits']} bits)\n"
    )
    if (found := summary["evaluation"]) is not None:
        ci = found["ci"]
        interval = "no interval" if ci["low"] is None else f"95 % interval {ci['low']:+.3f} to {ci['high']:+.3f} %"
        text += (
            f"perplexity {found['before']['ppl']:.4f} -> {found['after']['ppl']:.4f}, {found['ppl_change_pct']:+.3f} % "
            f"({interval}), {found['n_tokens']} tokens, protocol {found['protocol']['name']}\n"
        )
    return text
