"""TensorFlow checkpoints of tiny models, written byte by byte after LevelDB's and TensorFlow's own descriptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcli.checkpoints.tensorflow import DTYPES, FOOTER, MAGIC

NUMBERS = {getattr(torch, name): number for number, name in DTYPES.items()}


def number(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + number(rest) if rest else bytes([low])


def field(key: int, value: int | bytes) -> bytes:
    """A field of a message: a whole number, or bytes with their length."""
    if isinstance(value, int):
        return number(key << 3) + number(value)
    return number(key << 3 | 2) + number(len(value)) + value


def block(entries: list[tuple[bytes, bytes]], restart: int = 3) -> bytes:
    """A block of a table: each key leaves out what it shares with the one before, but for every restart-th."""
    data, places, before = b"", [], b""
    for n, (key, value) in enumerate(entries):
        shared = 0
        if n % restart:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            places.append(len(data))
        data += number(shared) + number(len(key) - shared) + number(len(value)) + key[shared:] + value
        before = key
    return data + b"".join(place.to_bytes(4, "little") for place in [*places, len(places)])


def table(entries: list[tuple[bytes, bytes]], together: int = 5, compression: int = 0) -> bytes:
    """A whole index: blocks of `together` entries, an index of them, the footer."""
    data, handles = b"", []

    def add(body: bytes) -> bytes:
        nonlocal data
        handle = number(len(data)) + number(len(body))
        data += body + bytes([compression]) + bytes(4)
        return handle

    for begin in range(0, len(entries), together):
        part = entries[begin : begin + together]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles, 1))
    return data + footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC


def entry(tensor: Tensor, shard: int, offset: int) -> bytes:
    """What the index says of a tensor."""
    shape = b"".join(field(2, field(1, size)) for size in tensor.shape)
    where = field(3, shard) + field(4, offset) + field(5, tensor.nbytes)
    return field(1, NUMBERS[tensor.dtype]) + field(2, shape) + where + b"\x35" + bytes(4)  # a checksum


def write(directory: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> Path:
    """A checkpoint "model.ckpt" of so many files of numbers; the path of its index."""
    contents = [b""] * shards
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for n, name in enumerate(sorted(tensors)):
        tensor = tensors[name].contiguous()
        entries.append((name.encode(), entry(tensor, n % shards, len(contents[n % shards]))))
        contents[n % shards] += tensor.flatten().view(torch.uint8).numpy().tobytes()
    for n, content in enumerate(contents):
        (directory / f"model.ckpt.data-{n:05}-of-{shards:05}").write_bytes(content)
    index = directory / "model.ckpt.index"
    index.write_bytes(table(entries))
    return index


def write_gpt2(source: Path, target: Path) -> None:
    """A GPT-2 of Hugging Face's layout with tokenizer.json → the files that OpenAI's own download had."""
    config = json.loads((source / "config.json").read_text())
    keys = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    hparams = {key: config[keys.get(key, key)] for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")}
    (target / "hparams.json").write_text(json.dumps(hparams))
    bpe = json.loads((source / "tokenizer.json").read_text())["model"]
    (target / "encoder.json").write_text(json.dumps(bpe["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    (target / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        parts = name.removeprefix("transformer.").split(".")
        layer = [f"h{parts[1]}"] if parts[0] == "h" else []
        *inner, leaf = parts[2:] if layer else parts
        if inner[-1] in ("wte", "wpe"):
            tensors["/".join(["model", *inner])] = tensor
            continue
        short = "b" if leaf == "bias" else "g" if inner[-1].startswith("ln") else "w"
        tensors["/".join(["model", *layer, *inner, short])] = tensor[None] if short == "w" else tensor
    write(target, tensors)
