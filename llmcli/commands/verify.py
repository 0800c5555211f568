"""`llmcli verify`: gates for the promises: the same bits however a run is cut up, and kernels that are right."""

from __future__ import annotations

from dataclasses import asdict

import click

from llmcli.commands.measuring import Sizes
from llmcli.commands.options import (
    Command,
    Group,
    ModelChoice,
    cache_dtype_option,
    model_options,
    option,
    output_options,
    quantize_option,
    verbosity_options,
)
from llmcli.commands.progress import Progress
from llmcli.commands.terminal import open_output
from llmcli.commands.verify_kernels import emit, kernels
from llmcli.errors import GateFailed, InputError


@click.command(
    "verify",
    cls=Group,
    subcommand_metavar="determinism|cache|kernels …",
    examples=[
        ("the same bits for any threads, batch, prompt chunk, with and without cache", "llmcli verify determinism"),
        ("every way of filling the cache equals the full prefill", "llmcli verify cache -m gpt2 --dtype bfloat16"),
        ("every kernel on every instruction set of this machine against float64", "llmcli verify kernels"),
    ],
)
def command() -> None:
    """Check what llmcli promises, on this machine: exit 0 when it holds, 3 when it does not."""


@command.command(
    "determinism",
    cls=Command,
    short_help="One hash for every way of running.",
    examples=[("on your own model and thread counts", "llmcli verify determinism -m ./my-gpt2 --thread-counts 1,2,8")],
)
@option("--thread-counts", type=Sizes(1), default="2,1,3", help="Thread counts; the first is the reference's.")
@option("--batch-size", type=Sizes(1), default="1,4", help="Prompts continued together.")
@option("--chunk", type=Sizes(0), default="0,7", help="Tokens of a prompt read at once; 0 is all.")
@option("--prompts", type=click.IntRange(1, 4096), default=4, metavar="N", help="Prompts, drawn from a counter.")
@option("--prompt-tokens", type=click.IntRange(1), default=33, metavar="N", help="Tokens of each prompt.")
@option("--gen-tokens", type=click.IntRange(1), default=8, metavar="N", help="Tokens that each is continued by.")
@option(
    "-r",
    "--repetitions",
    type=click.IntRange(1, 1000),
    default=3,
    metavar="N",
    help="Runs of each setting; the fastest gives the cost.",
)
@model_options
@quantize_option
@cache_dtype_option
@output_options("text", "json")
@verbosity_options
def determinism(
    thread_counts: list[int],
    batch_size: list[int],
    chunk: list[int],
    prompts: int,
    prompt_tokens: int,
    gen_tokens: int,
    repetitions: int,
    choice: ModelChoice,
    format: str,
    output: str | None,
) -> None:
    """Continue the same prompts under every combination of threads, batch, prompt chunk and cache.

    Hashes all logits and all tokens of each run. The cost is a setting's fastest run against the first setting's: what
    it takes longer, in per cent. Exits with 3 when the hashes are not one.
    """
    if choice.threads is not None:
        raise InputError("-t: expected --thread-counts, which lists those to compare")
    with open_output(output) as out:
        loaded = choice.load()
        from llmcli.verification import determinism as check

        every, runs = check.settings(thread_counts, batch_size, chunk), []
        ids = check.draw_prompts(prompts, prompt_tokens, loaded.tokenizer.vocab_size).to(loaded.device)
        context = loaded.model.config.n_positions
        with Progress("verifying", total=len(every) * repetitions, unit="runs") as progress:
            for run in check.verify(loaded.model, ids, gen_tokens, every, context, repetitions):
                runs.append(run)
                progress(len(runs))
        runs = check.fastest(runs)
        rows = [
            {**asdict(r.setting), "sha256": r.sha256, "seconds": r.seconds,
             "cost_pct": 100 * (r.seconds / runs[0].seconds - 1)} for r in runs
        ]  # fmt: skip
        other = [row for row in rows if row["sha256"] != runs[0].sha256]
        word = "differs" if other else "identical"
        facts = {"verdict": word, "repetitions": repetitions, "results": rows, "llmcli": loaded.engine()}
        cells = [
            [str(row["threads"]), str(row["batch_size"]), str(row["chunk"] or "whole"), "on" if row["cache"] else "off",
             row["sha256"][:16], f"{row['cost_pct']:+.0f}"] for row in rows
        ]  # fmt: skip
        emit(out, format, "determinism", facts, ["threads", "batch", "chunk", "cache", "hash", "cost %"], cells)
    if other:
        one = {name: other[0][name] for name in ("threads", "batch_size", "chunk", "cache")}
        raise GateFailed(f"{len(other)} of {len(rows)} settings give other bits than the first, such as {one}")


@command.command(
    "cache",
    cls=Command,
    short_help="Prefill, chunks, single tokens and padded batches agree.",
    examples=[("in the precision that is served", "llmcli verify cache -m ./my-gpt2 --dtype bfloat16")],
)
@option("--chunk", type=Sizes(1), default="1,7,16", help="Tokens of a prompt read at once.")
@option("--prompt-tokens", type=Sizes(4), default="5,24,48", help="Lengths of the prompts.")
@model_options
@quantize_option
@cache_dtype_option
@output_options("text", "json")
@verbosity_options
def cache(chunk: list[int], prompt_tokens: list[int], choice: ModelChoice, format: str, output: str | None) -> None:
    """Read the same prompts in chunks, token by token, as a padded batch, and with rows repeated and dropped.

    Each row of logits must have the bits that a full prefill without a cache gives. Exits with 3 when one has not.
    """
    with open_output(output) as out:
        loaded = choice.load()
        from llmcli.verification import cache as check
        from llmcli.verification.determinism import check_fit, draw_prompts

        check_fit(max(prompt_tokens), 0, loaded.model.config.n_positions)
        ids = draw_prompts(len(prompt_tokens), max(prompt_tokens), loaded.tokenizer.vocab_size).tolist()
        prompts = [row[:n] for row, n in zip(ids, prompt_tokens, strict=True)]
        ways = list(check.verify(loaded.model, prompts, chunk, loaded.device))
        bad = [way for way in ways if way.differing]
        facts = {
            "verdict": "differs" if bad else "identical", "results": [asdict(way) for way in ways],
            "llmcli": loaded.engine(),
        }  # fmt: skip
        cells = [
            [way.name, str(way.compared), str(way.differing), f"{way.largest:.3g}",
             "identical" if not way.differing else f"prompt {way.first[0]}, token {way.first[1]}" if way.first else ""]
            for way in ways
        ]  # fmt: skip
        emit(out, format, "cache", facts, ["way", "rows", "differ", "largest", "first"], cells)
    if bad:
        raise GateFailed(f"{bad[0].name}: {bad[0].differing} of {bad[0].compared} rows differ from the full prefill")


command.add_command(kernels)
