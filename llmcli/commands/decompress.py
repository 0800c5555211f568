"""`llmcli decompress`: what `compress` wrote, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import click

from llmcli.commands import terminal, texts
from llmcli.commands.options import ModelChoice, define, model_options, quantize_option, verbosity_options
from llmcli.commands.parameters import option
from llmcli.commands.progress import Progress
from llmcli.errors import InputError, ModelError, ResourceError


@define(
    "decompress",
    examples=[
        ("a file", "llmcli decompress book.llmz -o book.txt"),
        ("a pipe, with the model that compressed it", "llmcli decompress -m ./my-gpt2 < book.llmz | head"),
    ],
)
@click.argument("file", required=False, type=click.Path())
@model_options
@quantize_option
@option("-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE instead of stdout; '-' is stdout.")
@verbosity_options
def command(file: str | None, choice: ModelChoice, output: str | None) -> None:
    """Bring back the bytes of FILE, or of stdin, which 'llmcli compress' wrote.

    Precision and windows are in the file. Exits with 5 when the model is another one or the file is damaged, with 6
    when the kernels are not those that compressed it.
    """
    if file is None and terminal.stdin_is_terminal():
        raise InputError("expected a compressed file, got none; name one, or pipe it in")
    packed = terminal.read_bytes(file or "-")
    from llmcli import compression
    from llmcli.compression.container import DIGEST, digest
    from llmcli.scoring import Sliding

    header, body = compression.unpack(packed)
    if choice.dtype not in ("auto", header.dtype):
        raise InputError(f"--dtype: expected {header.dtype}, which compressed the file, got {choice.dtype}")
    if choice.quantize not in (None, header.quantized):
        raise InputError(f"--quantize: expected {header.quantized or 'none'}, got {choice.quantize}")
    with terminal.open_output(output) as out:
        loaded = replace(texts.on_cpu(choice), dtype=header.dtype, quantize=header.quantized).load()
        compression.check_exact(loaded)
        engine, config = loaded.engine(), loaded.model.config
        weights = bytes.fromhex(engine["model_sha256"])[:DIGEST]
        if weights != header.model:
            raise ModelError(
                f"expected weights whose SHA-256 begins with {header.model.hex()}, got {weights.hex()}; "
                "name the model that compressed the file with -m"
            )
        if engine["kernels"] != header.kernels:
            raise ResourceError(
                f"expected the kernels {header.kernels}, which compressed the file, got {engine['kernels']}; "
                f"where this CPU has them, LLMCLI_CPU_ISA={header.kernels} chooses them"
            )
        if not 1 <= header.stride <= header.context <= config.n_positions:
            raise ModelError("the compressed file is damaged: its windows do not fit the model")
        rule = Sliding(header.context, header.stride)
        with Progress("decompressing", total=header.n_tokens, unit="tokens") as progress:
            ids = compression.decode(loaded.model, body, header.n_tokens, rule, config.vocab_size, progress=progress)
        data = compression.from_ids([min(i, loaded.tokenizer.vocab_size - 1) for i in ids], loaded.tokenizer)
        if digest(data) != header.data:
            raise ModelError("the compressed file is damaged: its contents do not have their checksum")
        out.write(data)
