"""`llmcli replay`: the run of a receipt again, as a gate."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import click

from llmcli.commands import terminal
from llmcli.commands.options import (
    WRITES,
    ModelChoice,
    define,
    model_options,
    output_options,
    quantize_option,
    verbosity_options,
)
from llmcli.errors import GateFailed, InputError


@define(
    "replay",
    examples=[
        ("write a receipt", 'llmcli generate "Once upon a time" --receipt run.json'),
        ("the same tokens today, on this machine", "llmcli replay run.json"),
        ("with another thread count, and the model elsewhere", "llmcli replay run.json -t 1 -m ./my-gpt2"),
    ],
)
@click.argument("receipt", type=click.Path())
@model_options
@quantize_option
@output_options("text", "json")
@verbosity_options
def command(receipt: str, choice: ModelChoice, format: str, output: str | None) -> None:
    """Generate again what RECEIPT records, one of them or one a line, and compare token by token.

    Model and precision are the receipt's unless flags name others. Exits with 3 at the first token that differs, and
    names both candidates and the gap between their logits; with 5 when weights, tokenizer, prompt or text do not have
    the recorded hash; with 2 for a receipt of another version.
    """
    text = terminal.read_text(receipt)
    try:
        documents = parse(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a receipt in JSON, got '{receipt}': {error}") from None
    from llmcli import receipts

    every = [receipts.check(document) for document in documents]
    facts = every[0]
    if any(one["model"] != facts["model"] or one["llmcli"] != facts["llmcli"] for one in every):
        raise InputError(f"expected the receipts of one run, got those of several in '{receipt}': replay one by one")
    dtype = str(facts["llmcli"].get("dtype")) if choice.dtype == "auto" else choice.dtype
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"receipt: expected float32, bfloat16 or float16, got the dtype {dtype!r}")
    quantize = choice.quantize or facts["llmcli"].get("quantized")
    if quantize not in (None, "int8", "int4"):
        raise InputError(f"receipt: expected int8, int4 or null, got quantized {quantize!r}")
    held = facts["llmcli"].get("cache_dtype", "auto") if choice.dtype == "auto" else "auto"
    if held not in ("auto", "float32", "bfloat16", "float16", "int8"):
        raise InputError(f"receipt: expected a type of cache, got cache_dtype {held!r}")
    given: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "cache_dtype": held}
    with terminal.open_output(output) as out:
        loaded = replace(choice, model=choice.model or facts["model"], **given).load(kinds=WRITES)
        verdict = None
        with suppress(click.exceptions.Exit), terminal.interruptible() as interrupt:
            verdict = receipts.replay_all(loaded, every, lambda: interrupt.stop_requested)
        if verdict is None:
            terminal.note("interrupted")
            raise click.exceptions.Exit(130)
        engine = loaded.engine()
        other = receipts.changed(facts, engine)
        changes = {key: f"{key} was {was}, is {now}" for key, (was, now) in other.items()}
        if format == "json":
            word = "identical" if verdict.divergence is None else "differs"
            row: dict[str, Any] = {"schema": "llmcli/replay/1", "verdict": word, **asdict(verdict), "changed": other}
            out.write(terminal.to_json({**row, "llmcli": engine}))
        elif verdict.divergence is None:
            where = f" of {len(every)} receipts" if len(every) > 1 else ""
            out.write(
                f"identical: {verdict.n_tokens} tokens in {verdict.n_samples} samples{where}; "
                f"log-probabilities differ by {verdict.logprob_difference:.3g} at most\n"
            )
        if verdict.divergence is None and changes.keys() - {"threads"}:  # any number of those gives the same bits
            terminal.note("although " + "; ".join(text for key, text in changes.items() if key != "threads"))
    if verdict.divergence is not None:
        found = verdict.divergence

        def spelt(token: int | None) -> str:
            if token is None:
                return "the end"
            known = token < loaded.tokenizer.vocab_size
            return f"{token} {loaded.tokenizer.token_bytes(token)!r}" if known and token >= 0 else f"{token} (unknown)"

        gap = "" if found.gap is None else f"; the logit of the latter is {found.gap:+.6g} from the former's"
        line = f"receipt {verdict.n_receipts}, " if len(every) > 1 else ""
        raise GateFailed(
            f"{line}sample {found.sample}, token {found.position}: expected {spelt(found.recorded)}, "
            f"got {spelt(found.found)}{gap}{''.join(f'; {text}' for text in changes.values())}"
        )


def parse(text: str) -> list[Any]:
    """A JSON document, or one in each line that is not blank. Raises ValueError where there is none."""
    try:
        return [json.loads(text)]
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]
