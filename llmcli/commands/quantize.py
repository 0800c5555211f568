"""`llmcli quantize`: a model in, the same model in 8 or 4 bits out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal, texts
from llmcli.commands.options import ModelChoice, define, encoding_options, model_options, option, verbosity_options
from llmcli.commands.progress import Progress, quiet_hub
from llmcli.errors import InputError, ModelError

if TYPE_CHECKING:
    from llmcli.loading import Loaded
    from llmcli.quantization import Matrix
    from llmcli.scoring import Document, Rule

FIGURES = ("old_ppl", "new_ppl", "increase_pct", "ci", "n_tokens", "n_documents", "protocol", "fingerprint")


@define(
    "quantize",
    examples=[
        ("half the memory of 16 bits, nearly the same text", "llmcli quantize gpt2 -o gpt2-int8"),
        ("4 bits, and what they cost on your own text", "llmcli quantize gpt2 -o gpt2-int4 --to int4 --eval book.txt"),
        ("4 bits that cost less", "llmcli quantize gpt2 -o gpt2-int4 --to int4 --calibrate another-book.txt"),
        ("use it like any other model", 'llmcli generate -m gpt2-int4 "Once upon a time"'),
    ],
)
@click.argument("source", required=False, metavar="[MODEL]")
@option("-o", "--output", required=True, metavar="DIR", help="Directory of the new model.")
@option("--to", type=click.Choice(["int8", "int4"]), default="int8", help="What the matrices become.")
@option("--calibrate", multiple=True, metavar="FILE", help="Round so that what this text brings changes least.")
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
    calibrate: tuple[str, ...],
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
    either. With --calibrate, the model reads up to 16,384 tokens of a text, and what rounding does to them is made up
    for (GPTQ): 4 bits cost about half as much perplexity, and some minutes of work. With --eval, both models score the
    same windows of the same texts, and the change of perplexity is printed with its paired 95 % interval.
    """
    if source is not None and choice.model is not None:
        raise InputError("expected one model, got MODEL and --model")
    choice = replace(choice, model=source if source is not None else choice.model)
    if calibrate.count("-") + eval.count("-") > 1:
        raise InputError("expected '-' (stdin) once, got it for --calibrate and for --eval")
    named = texts.read(eval, encoding_errors) if eval else []
    lesson = [text for _, text in texts.read(calibrate, encoding_errors)] if calibrate else []
    choice.prepare()
    from llmcli import calibration, loading, quantization
    from llmcli.checkpoints import directory

    quiet_hub()
    name = "default" if choice.model is None else choice.model
    target, path = Path(output), loading.find(name, offline=choice.offline)
    directory.check_output(target, path)
    with terminal.open_output() as out:
        if named:
            old = choice.load()
            rule = texts.sliding(ctx_size, stride, old.model.config.n_positions)
            documents = texts.documents(old, named, rule)
        plain = loading.load(
            name, device="cpu", dtype=choice.dtype, offline=choice.offline, pack=False, kinds=loading.USES
        )
        moments, n_tokens = None, 0
        if lesson:
            ids = calibration.windows(plain, lesson)
            n_tokens = ids.numel()
            with Progress("calibrating", total=n_tokens, unit="tokens") as progress:
                moments = calibration.moments(plain, ids, progress)
        with Progress("quantising", unit="matrices") as progress:
            matrices = quantization.save(plain, to, target, progress, moments)
        del plain, moments
        summary = summarise(name, path, target, to, matrices) | {"calibration_tokens": n_tokens}
        if named:
            new = replace(choice, model=output).load()
            summary["evaluation"] = evaluate(old, new, documents, rule, batch_size)
        out.write(terminal.to_json(summary) if json else as_text(summary))
    if not named:
        terminal.note("perplexity not measured: name a text with --eval FILE")


def evaluate(old: Loaded, new: Loaded, documents: list[Document], rule: Rule, batch_size: int | None) -> dict[str, Any]:
    """The change of perplexity, as `compare-perplexity` finds it. Raises ModelError when it is not a number."""
    from llmcli.scoring import comparison

    with Progress("comparing", total=sum(document.n_tokens for document in documents), unit="tokens") as progress:
        pairs = comparison.compare(
            old.model, new.model, documents, rule, batch_size=batch_size or max(1, 2048 // rule.context),
            devices=(old.device, new.device), progress=progress,
        )  # fmt: skip
    report = comparison.summarise(documents, pairs, rule)
    if "error" in report:
        raise ModelError(f"{report['error']}; no comparison")
    return {name: report[name] for name in FIGURES}


def summarise(model: str, path: Path, target: Path, to: str, matrices: list[Matrix]) -> dict[str, Any]:
    """The document, still without an evaluation."""
    from llmcli.checkpoints import directory

    return {
        "schema": "llmcli/quantize/1",
        "model": model,
        "output": str(target),
        "to": to,
        "bytes_before": directory.size(path),
        "bytes_after": directory.size(target),
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
        low, high = found["ci"]["low"], found["ci"]["high"]
        interval = "no interval" if low is None else f"95 % interval {low:+.3f} to {high:+.3f} %"
        text += (
            f"perplexity {found['old_ppl']:.4f} -> {found['new_ppl']:.4f}, {found['increase_pct']:+.3f} % "
            f"({interval}), {found['n_tokens']} tokens, protocol {found['protocol']['name']}\n"
        )
    return text
