"""`llmcli tokenizer`: a tokenizer of one's own, learned from text."""

from __future__ import annotations

from pathlib import Path

import click

from llmcli.commands import learning, terminal
from llmcli.commands.options import Command, Group, option, verbosity_options
from llmcli.errors import InputError, ResourceError


@click.command(
    "tokenizer",
    cls=Group,
    subcommand_metavar="train …",
    examples=[("8192 entries from your texts", "llmcli tokenizer train notes/ --vocab-size 8192 --output runs/words")],
)
def command() -> None:
    """Make a tokenizer from text, for 'llmcli train --tokenizer'."""


@command.command(
    "train",
    cls=Command,
    short_help="Learn byte-level BPE.",
    examples=[
        ("from a directory of texts", "llmcli tokenizer train notes/ --output runs/words"),
        ("one entry for each character", "llmcli tokenizer train notes/ --characters --output runs/letters"),
        ("then a model that uses it", "llmcli train --data notes/ --tokenizer runs/words --output runs/notes"),
    ],
)
@click.argument("files", nargs=-1, metavar="[FILES]...")
@option("--data", multiple=True, metavar="PATH", help="A text, a JSONL of texts, a directory, or '-'; FILES are more.")
@option("--vocab-size", type=click.IntRange(257), help="Entries, the 256 bytes among them. [default: 4096]")
@option("--characters", is_flag=True, help="Join bytes to the characters of the text only, not to words.")
@option("--output", required=True, metavar="DIR", help="Directory of the tokenizer.")
@option("--json", is_flag=True, help="Print the summary as JSON.")
@verbosity_options
def train(
    files: tuple[str, ...], data: tuple[str, ...], vocab_size: int | None, characters: bool, output: str, json: bool
) -> None:
    """Learn byte-level BPE in GPT-2's manner from text; --output gets tokenizer.json and tokenizer_config.json.

    The same text gives the same tokenizer. No text is unknown to it, since every byte has an entry; <|endoftext|> is
    entry 0. With --characters a token is never more than one character.
    """
    if not (data or files):
        raise InputError("expected text, got none; name files, or '-' for standard input")
    if characters and vocab_size:
        raise InputError(
            "expected --vocab-size or --characters, got both; the text decides how many characters there are"
        )
    from llmcli.data import corpus

    documents = learning.documents((*data, *files))
    if characters:
        tokenizer = corpus.character_tokenizer(documents)
    else:
        tokenizer = corpus.train_tokenizer(documents, vocab_size or 4096)
    n_tokens = sum(len(ids) for _, ids in corpus.encode(tokenizer, documents)) - len(documents)
    n_bytes = sum(document.n_bytes for document in documents)
    directory = Path(output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot write a tokenizer in {directory}: {error.strerror}") from None
    for name, text in corpus.tokenizer_files(tokenizer).items():
        with terminal.open_output(str(directory / name)) as file:
            file.write(text)
    summary = {
        "schema": "llmcli/tokenizer/1",
        "output": output,
        "vocab_size": tokenizer.vocab_size,
        "n_bytes": n_bytes,
        "n_tokens": n_tokens,
        "bytes_per_token": n_bytes / n_tokens,
    }
    with terminal.open_output() as stdout:
        stdout.write(
            terminal.to_json(summary)
            if json
            else f"{output}: {tokenizer.vocab_size} entries, {n_bytes / n_tokens:.2f} bytes a token of this text\n"
        )
