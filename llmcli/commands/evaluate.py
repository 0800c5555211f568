"""`llmcli evaluate`: what a model writes after prompts, measured against what it should have written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options, terminal
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.evaluation import Pair


@options.define(
    "evaluate",
    examples=[
        ("how often the answer is right", "llmcli evaluate -m runs/answers test.jsonl"),
        ("a translation", "llmcli evaluate -m runs/german test.jsonl --metric bleu --batch-size 16"),
        ("only what follows ####", "llmcli evaluate -m runs/math test.jsonl --answer '#### (.+)'"),
    ],
)
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@options.option(
    "--metric",
    multiple=True,
    type=click.Choice(["exact", "bleu", "rouge"]),
    default=["exact"],
    help="Can be repeated; BLEU needs the package sacrebleu, ROUGE rouge-score.",
)
@options.option("--answer", metavar="REGEX", help="Compare only its last match, or the first group of that.")
@options.option("-n", "--max-tokens", type=click.IntRange(1), default=128, help="Tokens to write at most.")
@options.option(
    "--batch-size", type=click.IntRange(1, 4096), default=8, help="Prompts at once; changes the speed only."
)
@options.option("--samples", metavar="FILE", help="Write prompt, wanted and written text of each record as JSONL.")
@options.model_options
@options.output_options("text", "json")
@options.verbosity_options
def command(
    files: tuple[str, ...],
    metric: tuple[str, ...],
    answer: str | None,
    max_tokens: int,
    batch_size: int,
    samples: str | None,
    choice: options.ModelChoice,
    format: str,
    output: str | None,
) -> None:
    """Exact match, BLEU and ROUGE of greedy completions.

    FILES or stdin are JSONL with "prompt" and "completion", as 'llmcli finetune' learns them. White space around a text
    does not count.
    """
    if not files and terminal.stdin_is_terminal():
        raise InputError("expected JSONL of prompts and completions, got none; name files, or pipe it in")
    try:
        pattern = None if answer is None else re.compile(answer)
    except re.error as error:
        raise InputError(f"--answer: expected a regular expression, got {answer!r}: {error}") from None
    pairs = [pair for path in files or ("-",) for pair in read(path)]
    loaded = choice.load(kinds=options.WRITES)
    from llmcli import evaluation

    evaluation.figures(pairs[:1], ["x"], metric, pattern)  # what is missing is said before the work
    written: list[str] = []
    with terminal.open_output(output) as out:
        with Progress("completing", total=len(pairs), unit="prompts") as progress:
            for text in evaluation.complete(
                loaded, [pair.prompt for pair in pairs], max_tokens=max_tokens, batch_size=batch_size
            ):
                written.append(text)
                progress(len(written))
        found = evaluation.figures(pairs, written, metric, pattern)
        if samples is not None:
            with terminal.open_output(samples) as file:
                for pair, text in zip(pairs, written, strict=True):
                    record = {"prompt": pair.prompt, "completion": pair.completion, "written": text}
                    file.write(terminal.to_json(record, indent=None))
        if format == "json":
            document = {"schema": "llmcli/evaluation/1", "model": loaded.name, "n": len(pairs), "metrics": found}
            out.write(terminal.to_json({**document, "llmcli": loaded.engine()}))
        else:
            out.write("".join(f"{line}\n" for line in words(found)))


def read(path: str) -> list[Pair]:
    """The records of a JSONL file or of stdin. Raises InputError with file:line."""
    from llmcli.data import examples
    from llmcli.evaluation import Pair

    name = "standard input" if path == "-" else path
    return [
        Pair(examples.string(record, "prompt", place), examples.string(record, "completion", place))
        for place, record in examples.split(terminal.read_text(path), name, jsonl=True)
    ]


def words(found: dict[str, dict[str, Any]]) -> list[str]:
    """The figures for people, a line for each metric."""
    lines = []
    for name, one in found.items():
        if name == "exact":
            lines.append(f"exact match {100 * one['score']:.2f} % ({one['right']} of {one['n']})")
        elif name == "bleu":
            lines.append(f"BLEU {one['score']:.2f} ({one['signature']})")
        else:
            lines.append("ROUGE F1 " + ", ".join(f"{key.removeprefix('rouge')} {one[key]:.4f}" for key in one))
    return lines
