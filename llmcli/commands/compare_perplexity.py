"""`llmcli compare-perplexity`: did a model become worse? Two models in lock-step, and a verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from llmcli.commands import options, terminal, texts
from llmcli.commands.parameters import Percent
from llmcli.commands.progress import Progress
from llmcli.errors import GateFailed, Inconclusive, InputError, ModelError

STORED = (
    "from_files",
    "max_increase",
    "seed",
    "json",
    "format",
    "output",
    "quiet",
    "verbose",
)  # flags beside --from-files


@options.define(
    "compare-perplexity",
    examples=[
        ("fail when a new checkpoint is more than half a per cent worse",
         "llmcli compare-perplexity old/ new/ --max-increase 0.5% held-out/*.txt"),
        ("what bfloat16 costs, with KL divergence",
         "llmcli compare-perplexity gpt2 gpt2 --new-dtype bfloat16 --kl a.txt"),
        ("what two runs of 'perplexity --json' left in files",
         "llmcli compare-perplexity --from-files old.json new.json --max-increase 0.5%"),
    ],
)  # fmt: skip
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.option("--from-files", is_flag=True, help="OLD and NEW are files of 'perplexity --json', and no FILES follow.")
@options.option("--max-increase", type=Percent(), help="Exit 3 when the perplexity grew by more, 4 when unsure: 0.5%.")
@options.option(
    "--kl", is_flag=True, help="Compare whole distributions: KL divergence, agreement of the likeliest token."
)
@options.option(
    "--new-dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="--dtype of NEW alone."
)
@options.option("--new-quantize", type=click.Choice(["int8", "int4"]), help="Bring the matrices of NEW to 8 or 4 bits.")
@options.option("--protocol", metavar="NAME", help="As of 'llmcli perplexity', but not all. [default: sliding]")
@texts.window_options
@options.engine_options
@options.offline_option
@options.encoding_options[0]
@options.seed_option
@options.output_options("text", "json")
@options.verbosity_options
def command(
    old: str,
    new: str,
    files: tuple[str, ...],
    from_files: bool,
    max_increase: float | None,
    kl: bool,
    new_dtype: str | None,
    new_quantize: str | None,
    protocol: str | None,
    ctx_size: int | None,
    stride: int | None,
    batch_size: int | None,
    engine: options.Engine,
    offline: bool,
    encoding_errors: str,
    seed: int,
    format: str,
    output: str | None,
) -> None:
    """Score the same windows with two models of one tokenizer, and compare token by token.

    The interval of the increase is a block bootstrap over paired differences, in which what makes a text hard cancels.
    With --max-increase, exits with 0 when the whole interval is at most that, with 3 when it is above, and with 4 when
    it holds it: take more text. Stored results are compared by document and by block of tokens; those that differ in
    fingerprint are refused.
    """
    if from_files:
        refuse_flags(files)
        with terminal.open_output(output) as out:
            from llmcli.scoring import comparison, stored

            report = stored.compare(*(stored.parse(terminal.read_text(path), path) for path in (old, new)), seed=seed)
            word = None if max_increase is None else comparison.verdict(report, max_increase)
            write(out, format, {"old": old, "new": new, "max_increase_pct": max_increase, "verdict": word, **report})
        judge(report, word, max_increase)
        return
    named = texts.read(files, encoding_errors)
    window = texts.stronger(protocol, ctx_size, stride)
    with terminal.open_output(output) as out:
        first = options.ModelChoice(**vars(engine), model=old, offline=offline)
        one = first.load()
        two = replace(first, model=new, dtype=new_dtype or engine.dtype, quantize=new_quantize).load()
        from llmcli.scoring import comparison

        limit = min(loaded.model.config.n_positions for loaded in (one, two))
        rule = texts.rule(*window, limit)
        documents, others = (texts.documents(loaded, named, rule) for loaded in (one, two))
        if one.tokenizer.vocab_size != two.tokenizer.vocab_size or any(
            a.ids.tolist() != b.ids.tolist() for a, b in zip(documents, others, strict=True)
        ):
            raise InputError(f"expected two models with one tokenizer, got other tokens from {old} and {new}")
        with Progress("comparing", total=sum(d.n_tokens for d in documents), unit="tokens") as progress:
            pairs = comparison.compare(
                one.model, two.model, documents, rule, batch_size=batch_size or max(1, 2048 // rule.context),
                distributions=kl, devices=(one.device, two.device), progress=progress,
            )  # fmt: skip
        report = comparison.summarise(documents, pairs, rule, seed=seed)
        for row in report["worst_tokens"]:
            row |= texts.place(documents[row["document"]], rule, row["position"], one.tokenizer)
        word = None if max_increase is None else comparison.verdict(report, max_increase)
        facts = {"old": old, "new": new, "max_increase_pct": max_increase, "verdict": word, **report}
        write(out, format, facts, {"old": one.engine(), "new": two.engine(), "seed": seed})
    if "error" in report:
        raise ModelError(f"{report['error']}; no comparison")
    judge(report, word, max_increase)


def refuse_flags(files: tuple[str, ...]) -> None:
    """Raise InputError for what says how to score, where nothing is scored."""
    if files:
        raise InputError(f"--from-files: expected two files of 'perplexity --json', got another, '{files[0]}'")
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        flagged = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if isinstance(parameter, click.Option) and flagged and name not in STORED:
            raise InputError(f"{parameter.opts[-1]} says how to score, and --from-files names what was scored")


def write(out: terminal.Writer, format: str, facts: dict[str, Any], engines: dict[str, Any] | None = None) -> None:
    """The comparison in the format that was asked for; engines are those of a live one."""
    if format == "json":
        more = {} if engines is None else {"llmcli": engines}
        out.write(terminal.to_json({"schema": "llmcli/compare-perplexity/1", **facts, **more}))
    else:
        out.write(as_text(facts))


def judge(report: dict[str, Any], word: str | None, max_increase: float | None) -> None:
    """Raise what the verdict asks for."""
    low, high = (terminal.figure(report["ci"][end]) for end in ("low", "high"))
    if word == "failed":
        raise GateFailed(f"the perplexity grew by {low} to {high} %, more than {max_increase:g} %")
    if word == "inconclusive":
        raise Inconclusive(
            f"the perplexity grew by {low} to {high} %, which does not decide {max_increase:g} %; take more text"
        )


def as_text(facts: dict[str, Any]) -> str:
    """What changed, for people."""
    cell, ci = terminal.figure, facts["ci"]
    rows = [
        ["perplexity, old", cell(facts["old_ppl"])],
        ["perplexity, new", cell(facts["new_ppl"])],
        ["increase %", cell(facts["increase_pct"])],
        ["interval %", f"{cell(ci['low'])} to {cell(ci['high'])}"],
        ["documents improved", f"{cell(facts['documents_improved'])} of {facts['n_documents']}"],
    ]
    if facts["tokens_improved"] is not None:
        rows.append(["tokens improved", f"{cell(facts['tokens_improved'])} of {facts['n_tokens']}"])
        rows.append(["change of p", ", ".join(f"{q} {cell(value)}" for q, value in facts["delta_p"].items())])
    if "kl" in facts:
        rows.append(["KL(old, new)", ", ".join(f"{name} {value:.3g}" for name, value in facts["kl"].items())])
        rows.append(["likeliest agrees", cell(facts["top1_agreement"])])
    rows += [["worst document", f"{row['name']} {cell(row['increase_pct'])} %"] for row in facts["worst_documents"]]
    rows += [
        ["worst token", f"{row['name']} byte {row['byte_offset']} {row['token']!r} {row['increase_bits']:+.2f} bits"]
        for row in facts["worst_tokens"]
    ]
    last = f"{ci['method']}\nprotocol {facts['protocol']['name']}, fingerprint {facts['fingerprint']}\n"
    return terminal.table(["figure", "value"], rows) + last + (f"{facts['verdict']}\n" if facts["verdict"] else "")
