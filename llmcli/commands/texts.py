"""What commands that score texts share: named files, the flags of a window, and scoring with progress and warnings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal
from llmcli.commands.options import ModelChoice, option
from llmcli.commands.parameters import Function
from llmcli.commands.progress import Progress
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.loading import Loaded
    from llmcli.scoring import Document, Floats, Rule, Sliding
    from llmcli.tokenizer import Tokenizer


def window_options(function: Function) -> Function:
    """Add -c, --stride and --batch-size; passed as `ctx_size`, `stride` and `batch_size`, None where not given."""
    for decorator in reversed(
        (
            option(
                "-c",
                "--ctx-size",
                type=click.IntRange(1),
                metavar="N",
                help="Tokens the model reads at once. [default: all it can]",
            ),
            option(
                "--stride",
                aliases=["--ppl-stride"],
                type=click.IntRange(1),
                metavar="N",
                help="Tokens between windows: less is more context and more work. [default: half of --ctx-size]",
            ),
            option(
                "--batch-size",
                type=click.IntRange(1, 4096),
                metavar="N",
                help="Windows scored together; changes the speed only. [default: about 2048 tokens]",
            ),
        )
    ):
        function = decorator(function)
    return function


def read(files: Sequence[str], errors: str) -> list[tuple[str, str]]:
    """The name and the text of every document. Raises InputError and ModelError."""
    if not files and terminal.stdin_is_terminal():
        raise InputError("expected text, got none; name files, or pipe text in ('-' is stdin)")
    if files.count("-") > 1:
        raise InputError(f"expected '-' (stdin) once, got it {files.count('-')} times")
    for path in files:
        if os.path.isdir(path):
            raise InputError(
                f"expected text files, got the directory '{path}'; name its files: {path.rstrip('/')}/*.txt"
            )
    # A name in another encoding is spelt with U+FFFD, because the report is UTF-8.
    return [
        (os.fsencode(path).decode("utf-8", "replace"), terminal.read_text(path, errors)) for path in files or ("-",)
    ]


def stronger(
    protocol: str | None, ctx_size: int | None, stride: int | None
) -> tuple[str | None, int | None, int | None]:
    """The name or the numbers: flags beat environment variables. Raises InputError when both are equally strong."""
    if protocol is None or (ctx_size, stride) == (None, None):
        return protocol, ctx_size, stride
    flagged = [
        click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        for name in ("protocol", "ctx_size", "stride")
    ]
    if flagged[0] == any(flagged[1:]):
        raise InputError("expected either --protocol or --ctx-size and --stride, got both")
    return (protocol, None, None) if flagged[0] else (None, ctx_size, stride)


def rule(protocol: str | None, ctx_size: int | None, stride: int | None, limit: int) -> Rule:
    """The protocol that the flags ask for, within the `limit` of the model. Raises InputError."""
    from llmcli import scoring

    if protocol is None:
        return sliding(ctx_size, stride, limit)
    rule = scoring.protocol(protocol, limit)
    if rule.context > limit:
        raise InputError(f"context: expected at most {limit} tokens, which is all this model reads, got {rule.context}")
    return rule


def on_cpu(choice: ModelChoice) -> ModelChoice:
    """The same choice, on the CPU unless a device is named."""
    return replace(choice, device="cpu") if choice.device == "auto" else choice


def sliding(ctx_size: int | None, stride: int | None, limit: int) -> Sliding:
    """The sliding windows of the flags, within the `limit` of the model. Raises InputError."""
    from llmcli import scoring

    context = limit if ctx_size is None else ctx_size
    if context > limit:
        raise InputError(f"context: expected at most {limit} tokens, which is all this model reads, got {context}")
    return scoring.Sliding(context, scoring.default_stride(context) if stride is None else stride)


def documents(loaded: Loaded, texts: Sequence[tuple[str, str]], rule: Rule) -> list[Document]:
    """Each text as the rule reads it, with a warning for one that is too short. Raises InputError if all are."""
    from llmcli import scoring

    documents = [scoring.encode(name, text, loaded.tokenizer, rule) for name, text in texts]
    for document in documents:
        if not document.n_tokens:
            name = "standard input" if document.name == "-" else document.name
            problem = f"{name}: {scoring.too_short(document, rule.least)}"
            if not any(other.n_tokens for other in documents):
                raise InputError(f"{problem}; there is nothing to score")
            terminal.note(f"warning: {problem}; left out")
    known: dict[str, str] = {}
    for document in documents:
        if document.n_tokens and document.sha256 in known:
            terminal.note(f"warning: {document.name} holds the same text as {known[document.sha256]}: it counts twice")
        known.setdefault(document.sha256, document.name)
    return documents


def score(
    loaded: Loaded, texts: Sequence[tuple[str, str]], rule: Rule, batch_size: int | None
) -> tuple[list[Document], list[Floats]]:
    """Each text and its log-probabilities, with progress and warnings. Raises InputError if none can be scored."""
    from llmcli import scoring

    read = documents(loaded, texts, rule)
    batch = batch_size or max(1, 2048 // rule.context)
    with Progress("scoring", total=sum(document.n_tokens for document in read), unit="tokens") as progress:
        return read, scoring.score(loaded.model, read, rule, batch_size=batch, device=loaded.device, progress=progress)


def place(document: Document, rule: Rule, position: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The scored token at a position: its id, its text, and its byte offset in the text that was read."""
    from llmcli.generation.text_stream import spell

    ids = document.ids.tolist()
    scored = [t for window in rule.windows(len(ids)) for t in range(window.first, window.stop)]
    before = ids[1 if rule.prefixed else 0 : scored[position]]
    token = ids[scored[position]]
    offset = len(tokenizer.spell(before))
    return {"token": spell(tokenizer.token_bytes(token)), "token_id": token, "byte_offset": offset}
