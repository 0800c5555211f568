"""`llmcli compress`: any bytes, in as many bits as the model says they hold."""

from __future__ import annotations

import click

from llmcli.commands import terminal, texts
from llmcli.commands.options import ModelChoice, define, model_options, quantize_option, verbosity_options
from llmcli.commands.parameters import option
from llmcli.commands.progress import Progress
from llmcli.errors import InputError


@define(
    "compress",
    examples=[
        ("a file", "llmcli compress book.txt -o book.llmz"),
        ("there and back", "llmcli compress < book.txt | llmcli decompress | cmp - book.txt"),
        ("beside what perplexity says", "llmcli perplexity book.txt; llmcli compress book.txt | wc -c"),
    ],
)
@click.argument("file", required=False, type=click.Path())
@model_options
@quantize_option
@texts.window_options
@option("-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE instead of stdout; '-' is stdout.")
@verbosity_options
def command(
    file: str | None,
    choice: ModelChoice,
    ctx_size: int | None,
    stride: int | None,
    batch_size: int | None,
    output: str | None,
) -> None:
    """Compress FILE, or stdin, by arithmetic coding with the model's probabilities.

    The windows are those of 'perplexity', so that the size is the bits that it reports, plus some 50 bytes. Any bytes
    come back exactly, with other threads and batch sizes, too; it takes the same weights, precision and instruction
    set. The sizes are printed on stderr.
    """
    if file is None and terminal.stdin_is_terminal():
        raise InputError("expected bytes, got none; name a file, or pipe something in")
    terminal.refuse_terminal(output)
    data = terminal.read_bytes(file or "-")
    with terminal.open_output(output) as out:
        loaded = texts.on_cpu(choice).load()
        from llmcli import compression
        from llmcli.compression.container import DIGEST, digest

        compression.check_exact(loaded)
        config, engine = loaded.model.config, loaded.engine()
        rule = texts.sliding(ctx_size, stride, config.n_positions)
        ids = compression.to_ids(data, loaded.tokenizer)
        batch = batch_size or max(1, 2048 // rule.context)
        with Progress("compressing", total=len(ids), unit="tokens") as progress:
            body, bits = compression.encode(
                loaded.model, ids, rule, config.vocab_size, batch_size=batch, progress=progress
            )
        weights = bytes.fromhex(engine["model_sha256"])[:DIGEST]
        header = compression.Header(
            weights,
            digest(data),
            engine["dtype"],
            engine["quantized"],
            engine["kernels"],
            rule.context,
            rule.stride,
            len(ids),
        )
        packed = compression.pack(header, body)
        out.write(packed)
    if data:
        terminal.note(
            f"{len(data)} bytes to {len(packed)}: {8 * len(packed) / len(data):.4f} bits per byte, "
            f"{bits / len(data):.4f} by the model"
        )
