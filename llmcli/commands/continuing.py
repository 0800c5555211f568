"""`llmcli generate` at work: one request as it comes, or records batch by batch."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal
from llmcli.commands.constraining import advice
from llmcli.commands.options import WRITES, ModelChoice
from llmcli.commands.progress import Progress
from llmcli.errors import GateFailed, InputError

if TYPE_CHECKING:
    from llmcli.generation.completions import Completion, Session, Stopwatch
    from llmcli.generation.loop import Event, Request


def open_session(
    choice: ModelChoice,
    beams: int,
    length_penalty: float,
    ctx_size: int | None,
    ctx_overflow: str,
    *,
    kinds: Collection[str] = WRITES,
) -> Session:
    """Load the model under the flags' policy. Raises InputError where the two do not fit."""
    if beams > 1 and ctx_overflow == "slide":
        raise InputError("--beams: expected --ctx-overflow error or truncate, got slide")
    begin = time.perf_counter()
    loaded = choice.load(kinds=kinds)
    from llmcli.generation.completions import Policy, Session

    if loaded.answers and ctx_overflow == "slide":
        raise InputError(
            "--ctx-overflow slide: a model that answers its prompt has no text to slide along; use truncate"
        )

    longest = loaded.model.config.n_positions
    if ctx_size is not None and ctx_size > longest:
        raise InputError(f"--ctx-size: expected at most {longest}, the model's context, got {ctx_size}")
    policy = Policy(ctx_size or longest, ctx_overflow, beams, length_penalty)
    return Session(loaded, policy, time.perf_counter() - begin)


def leave_if(interrupt: terminal.Interrupt) -> None:
    """End the command with 130 if Ctrl-C was pressed."""
    if interrupt.stop_requested:
        terminal.note("interrupted")
        raise click.exceptions.Exit(130)


def continue_one(
    session: Session,
    request: Request,
    format: str,
    out: terminal.Writer,
    interrupt: terminal.Interrupt,
    *,
    noted: bool = False,
) -> list[Completion]:
    """Print one request's texts as they come, or its document at the end; returns its samples.

    noted: the samples have log-probabilities even if the request, and so its document, has none.
    """
    from llmcli.generation.completions import Completion, Stopwatch

    watch = Stopwatch(load=session.load_seconds)
    completions = [Completion() for _ in range(request.num_samples)]
    printer = Printer(out) if format == "text" else None
    run = replace(request, logprobs=request.logprobs or 0) if noted else request
    for event in session.events([run], lambda: interrupt.stop_requested):
        watch.tick()
        completions[event.sample].add(event)
        if printer is not None:
            printer.show(event)
    if printer is None:
        document = session.document(request, completions, watch)
        out.write(terminal.to_json(document, indent=2 if format == "json" else None))
    if terminal.is_verbose() or (sys.stderr is not None and sys.stderr.isatty()):
        terminal.note(summary(request, completions, watch))
    return completions


def write_receipt(path: str, session: Session, prompt: str, request: Request, samples: Sequence[Completion]) -> None:
    """Write the receipt of a request that has ended."""
    from llmcli import receipts

    with terminal.open_output(path) as out:
        out.write(terminal.to_json(receipts.make(session, prompt, request, samples)))


class Printer:
    """Texts of several samples in order: the first unfinished one as it comes, those behind it when it has ended."""

    def __init__(self, out: terminal.Writer) -> None:
        self._out, self._current = out, 0
        self._texts: defaultdict[int, str] = defaultdict(str)
        self._ended: set[int] = set()

    def show(self, event: Event) -> None:
        """Print what the event allows to print."""
        self._texts[event.sample] += event.text
        if event.finish_reason is not None:
            self._texts[event.sample] += "\n"
            self._ended.add(event.sample)
        while text := self._texts.pop(self._current, ""):
            self._out.write(text)
            self._current += self._current in self._ended


@dataclass
class Tally:
    """How many records there were, what was wrong with which, and whether Ctrl-C came."""

    count: int = 0
    problems: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)  # why texts ended that do not match
    interrupt: terminal.Interrupt = field(default_factory=terminal.Interrupt)

    def add(self, document: dict[str, Any]) -> None:
        """Count a document."""
        self.count += 1
        if "error" in document:
            self.problems.append(f"line {document['error']['line']}: {document['error']['message']}")
        choices = document.get("choices", ())
        self.unmatched += [choice["finish_reason"] for choice in choices if choice.get("matches") is False]


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def continue_many(
    session: Session,
    lines: Iterator[tuple[int, bytes]],
    batch_size: int,
    settings: dict[str, Any],
    errors: str,
    format: str,
    out: terminal.Writer,
    *,
    tally: Tally | None = None,
    lasting: bool = False,
    notes: terminal.Writer | None = None,
) -> Tally:
    """Continue numbered lines, batch_size at a time, and print each document as soon as those before it are done.

    notes: where the receipt of each record that has ended goes.
    lasting: documents hold nothing but what decides them, and one that Ctrl-C cut short is left to the next run.
    """
    from llmcli import records

    tally = tally or Tally()
    with (
        Progress("generating", unit="records") as progress,
        suppress(click.exceptions.Exit),
        terminal.interruptible() as tally.interrupt,
    ):
        stop = partial(getattr, tally.interrupt, "stop_requested")
        for record in records.answer(
            session, tally.interrupt.while_reading(lines), settings,
            batch_size=batch_size, errors=errors, noted=notes is not None, interrupted=stop,
        ):  # fmt: skip
            document = record.document(session)
            if lasting:
                if any(row["finish_reason"] == "interrupt" for row in document.get("choices", ())):
                    break
                document = records.lasting(document)
            tally.add(document)
            if format == "jsonl":
                out.write(terminal.to_json(document, indent=None))
            else:
                out.write("".join(choice["text"] + "\n" for choice in document.get("choices", ())))
            if notes is not None and record.request and record.completed:
                from llmcli import receipts

                receipt = receipts.make(session, record.prompt, record.request, record.samples)
                notes.write(terminal.to_json(receipt, indent=None))
            progress(tally.count)
    return tally


def resume_many(
    session: Session, lines: Iterable[bytes], batch_size: int, settings: dict[str, Any], errors: str, path: str
) -> Tally:
    """Go on with a file of documents, once each line of it is found to answer its record. Raises InputError."""
    from llmcli import records

    rest, tally = numbered(lines), Tally()
    with terminal.open_appended(path) as (done, out):
        for line in done:
            number, text = next(rest, (0, b""))
            try:
                document = json.loads(line)
            except (ValueError, RecursionError):
                document = None
            record = records.read(session, number, text, settings, errors)
            if not number or not records.answers(session, document, record):
                expected = f"the answer to line {number}" if number else "no more lines"
                raise InputError(
                    f"--resume: expected {expected} of --jsonl under these flags, got line {tally.count + 1} of "
                    f"'{path}'; run the command that began the file, or name another one"
                )
            tally.add(document)
        return continue_many(session, rest, batch_size, settings, errors, "jsonl", out, tally=tally, lasting=True)


def report(tally: Tally) -> None:
    """Say on stderr which records failed.

    Raises InputError when all did, or when there were none; GateFailed for texts that do not match what they must.
    """
    count, problems = tally.count, tally.problems
    if not count:
        raise InputError("--jsonl: expected at least one record, got none")
    if len(problems) == count:
        raise InputError(f"all {count} records failed; {problems[0]}")
    if problems:
        terminal.note(f"{len(problems)} of {count} records failed; {problems[0]}")
    if tally.unmatched:
        raise GateFailed(
            f"expected texts that match, got {len(tally.unmatched)} that were cut short; {advice(tally.unmatched)}"
        )


def summary(request: Request, completions: Iterable[Completion], watch: Stopwatch) -> str:
    """One line about what was done and how fast."""
    from llmcli.generation.completions import rate

    written = sum(len(completion.tokens) for completion in completions)
    speed = rate(written - request.num_samples, watch.predicted)
    return (
        f"loaded in {watch.load:.2f} s, read {len(request.ids)} tokens in {watch.prompt:.3f} s, "
        f"wrote {written} in {watch.predicted:.3f} s" + (f" ({speed:.0f}/s)" if speed else "")
    )
