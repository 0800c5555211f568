"""`llmcli score --choices`: multiple-choice questions from JSONL, and how many a model gets right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmcli.commands import terminal
from llmcli.commands.options import ModelChoice
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.scoring.choices import Question

SCHEMA = "llmcli/choices/1"


def answer(
    path: str, choice: ModelChoice, ctx_size: int | None, batch_size: int, format: str, output: str | None
) -> None:
    """Answer a file of questions and print accuracies, or with jsonl a line per question.

    Raises InputError when no question can be used; bad ones become error records.
    """
    lines = [(n, line) for n, line in enumerate(terminal.read_lines(path), 1) if line.strip()]
    if not lines:
        raise InputError("--choices: expected a question per line, got none that can be used")
    with terminal.open_output(output) as out:
        loaded = choice.load()
        from llmcli.scoring import choices

        # LAMBADA is published as lines of text, too.
        parse = choices.plain if path.endswith(".txt") and not lines[0][1].startswith(b"{") else choices.parse
        longest = loaded.model.config.n_positions
        if ctx_size is not None and ctx_size > longest:
            raise InputError(f"--ctx-size: expected at most {longest}, the model's context, got {ctx_size}")
        records: list[dict[str, Any]] = [{} for _ in lines]
        places = []

        def usable() -> Iterator[tuple[Question, list[tuple[list[int], int]]]]:
            for place, (number, line) in enumerate(lines):
                question = None
                try:
                    question = parse(line)
                    rows = choices.rows(question, loaded.tokenizer, ctx_size or longest)
                except InputError as error:
                    problem = {"message": str(error), "line": number}
                    records[place] = {"id": None if question is None else question.id, "error": problem}
                    continue
                places.append((place, question))
                yield question, rows

        with Progress("answering", total=len(lines), unit="questions") as progress:
            answered = choices.answer(loaded.model, usable(), batch_size=batch_size, device=loaded.device)
            for n, answers in enumerate(answered):
                place, question = places[n]
                records[place] = choices.describe(question, answers)
                progress(place + 1)
        summary = choices.summarise(records)
        bad = [record["error"] for record in records if "error" in record]
        if len(bad) == len(records):
            first = f"line {bad[0]['line']}: {bad[0]['message']}"
            raise InputError(f"--choices: expected a question per line, got none that can be used; {first}")
        if format == "jsonl":
            out.write("".join(terminal.to_json({"schema": SCHEMA, **record}, indent=None) for record in records))
        elif format == "json":
            head = {"schema": SCHEMA, "model": loaded.name, **summary}
            out.write(terminal.to_json({**head, "questions": records, "llmcli": loaded.engine()}))
        else:
            out.write(as_text(summary))
    if bad:
        terminal.note(f"{len(bad)} of {len(records)} questions failed; line {bad[0]['line']}: {bad[0]['message']}")


def as_text(summary: dict[str, Any]) -> str:
    """A table of accuracies, and one line each for what else is known."""
    rows = [
        [name, *(f"{100 * row[key]:.2f}" for key in ("value", "low", "high")), str(row["n"])]
        for name, row in summary["accuracy"].items()
    ]
    text = terminal.table(["rule", "accuracy %", "low", "high", "n"], rows, right=range(1, 5))
    if summary["chance"] is not None:
        text += f"chance {100 * summary['chance']:.2f} %\n"
    if summary["cloze_ppl"] is not None:
        text += f"perplexity of the missing words {summary['cloze_ppl']:.4f}\n"
    if summary["n_unlabelled"]:
        text += f"{summary['n_unlabelled']} questions without a label, not counted\n"
    return text
