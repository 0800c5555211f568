"""`llmcli tokenize`: text to token ids, pieces or counts. Needs a tokenizer, never weights."""

from __future__ import annotations

import click

from llmcli.commands.options import define, option, prompt_options, tokenizer_options, verbosity_options


@define(
    "tokenize",
    examples=[
        ("ids of a text, on one line", 'llmcli tokenize "The sea was calm."'),
        ("how many tokens a file has", "llmcli tokenize --count < book.txt"),
        ("what each token stands for", 'llmcli tokenize --pieces "Once upon a time"'),
        ("one count per line", "llmcli tokenize --lines --count -f prompts.txt"),
        ("there and back, byte for byte", "llmcli tokenize -f book.txt | llmcli detokenize | cmp - book.txt"),
    ],
)
@prompt_options
@option("--pieces", is_flag=True, help="One token per line: id, a tab, and the token as a quoted string.")
@option("--count", is_flag=True, help="Only the number of tokens.")
@option("--lines", is_flag=True, help="Treat each line as a text of its own.")
@option("--json", is_flag=True, help="One JSON document per text, one per line.")
@option("-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE instead of stdout; '-' is stdout.")
@tokenizer_options
@verbosity_options
def command(
    text: str, pieces: bool, count: bool, lines: bool, json: bool, output: str | None, model: str, offline: bool
) -> None:
    """Print the token ids of TEXT, or of standard input.

    The text is UTF-8 and nothing is stripped: a newline at its end is a token, too. Special tokens that are written
    out, such as <|endoftext|>, are recognised.
    """
    if pieces + count + json > 1:
        raise click.UsageError("expected one of --pieces, --count and --json, got several")
    from llmcli import description
    from llmcli.commands.terminal import open_output, to_json
    from llmcli.hub import find

    tokenizer = description.tokenizer(find(model, offline=offline))
    parts = [text]
    if lines:
        parts = text.removesuffix("\n").split("\n") if text else []
    with open_output(output) as out:
        for part in parts:
            ids = tokenizer.encode(part)
            if count:
                out.write(f"{len(ids)}\n")
            elif pieces:
                out.write("".join(f"{token}\t{show(tokenizer.token_bytes(token))}\n" for token in ids))
            elif json:
                document = {
                    "schema": "llmcli/tokenize/1",
                    "model": model,
                    "n_tokens": len(ids),
                    "n_bytes": len(part.encode()),
                    "ids": ids,
                    "pieces": [tokenizer.piece(token) for token in ids],
                }
                out.write(to_json(document, indent=None))
            else:
                out.write(" ".join(map(str, ids)) + "\n")


def show(data: bytes) -> str:
    r"""A token as a quoted string; bytes that are not whole characters as \xHH."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in data)
        return f"'{text}'"
    return repr(text)
