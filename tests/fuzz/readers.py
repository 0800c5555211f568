"""What reads files of others, one function a kind: bytes in, errors of ours out; any other exception is a finding."""

from __future__ import annotations

import contextlib
import functools
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from llmcli import caches, compression, description, receipts, records
from llmcli.chat_template import ChatTemplate
from llmcli.checkpoints import gguf, safetensors
from llmcli.commands import replay
from llmcli.description import gguf_model, gguf_vocabulary, gpt2_original
from llmcli.errors import LlmcliError
from llmcli.generation.completions import Policy, Session
from llmcli.models import model_class
from llmcli.tokenizer import Tokenizer

CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEMORY = 10, 2 << 30  # of the processor, and bytes, that one input may take
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "é"}, {"role": "user", "content": "?"}]


class Slow(Exception):
    """A reader took more than SECONDS."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise Slow or MemoryError where the block takes too much."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Slow(f"more than {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def refused(read: Callable[[], Any]) -> Any:
    """What a reader gives, None where it refuses."""
    try:
        return read()
    except LlmcliError as error:
        if "\n" in str(error):
            raise ValueError(f"an error of several lines: {error}") from None
        return None


def read_gguf(data: bytes, folder: Path) -> None:
    """Header, configuration, tokenizer, template and tensors."""
    path = folder / "x.gguf"
    path.write_bytes(data)
    file = refused(lambda: gguf.File(path))
    if file is None:
        return
    refused(lambda: gguf_model.config(file))
    refused(lambda: gguf_vocabulary.settings(file))
    use(refused(lambda: gguf_vocabulary.tokenizer(file)))
    for name, value in file.metadata.items():
        if isinstance(value, gguf.Items):
            refused(functools.partial(file.items, name, str if value.kind == gguf.STRING else int))
    take_all(gguf.Weights(file, torch.float32))


def read_safetensors(data: bytes, folder: Path) -> None:
    """Header and tensors."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    weights = refused(lambda: safetensors.open(path))
    if weights is not None:
        take_all(weights)


def read_index(data: bytes, folder: Path) -> None:
    """The names of shards."""
    path = folder / "model.safetensors.index.json"
    path.write_bytes(data)
    refused(lambda: safetensors.files(path))


def read_tensorflow(data: bytes, folder: Path) -> None:
    """The index of a TensorFlow checkpoint beside 64 bytes of numbers, up to tensors under Hugging Face's names."""
    path = folder / "model.ckpt.index"
    path.write_bytes(data)
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(64))
    weights = refused(lambda: gpt2_original.Renamed(path))
    if weights is not None:
        take_all(weights)


def read_config(data: bytes, folder: Path) -> None:
    """A config.json, up to the model without its weights."""
    (folder / "config.json").write_bytes(data)
    config = refused(lambda: description.config(folder))
    if config is not None:
        kind = refused(lambda: model_class(config.get("model_type")))
        if kind is not None:
            refused(lambda: kind.Config.from_dict(config))


def read_tokenizer(data: bytes, folder: Path) -> None:
    """A tokenizer.json."""
    (folder / "tokenizer.json").write_bytes(data)
    use(refused(lambda: Tokenizer.open(folder)))


def read_template(data: bytes, folder: Path) -> None:
    """A chat template."""
    source = data.decode("utf-8", "replace")
    template = refused(lambda: ChatTemplate(source, "<end>", "<begin>"))
    if template is not None:
        refused(lambda: template.render(TALK, add_generation_prompt=True))


def read_container(data: bytes, folder: Path) -> None:
    """What 'compress' writes."""
    refused(lambda: compression.unpack(data))


def read_record(data: bytes, folder: Path) -> None:
    """A line of --jsonl, up to the request."""
    found = refused(lambda: records.parse_record(data, {"max_tokens": 8, "seed": 0}))
    if found is not None:
        refused(lambda: session().request(found[0]["prompt"], found[1]))


def read_receipt(data: bytes, folder: Path) -> None:
    """A receipt, up to the run."""
    try:
        documents = replay.parse(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # which the command reports
        return
    for document in documents:
        refused(functools.partial(receipts.check, document))


def read_manifest(data: bytes, folder: Path) -> None:
    """What says which GGUF file a name of llama.cpp's or Ollama's is."""
    ollama = folder / "manifests" / "registry.example" / "library" / "x" / "latest"
    ollama.parent.mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for path in (folder / "blobs" / f"sha256-{'0a' * 32}", folder / "a_b_b-Q4_0.gguf"):  # what the corpus names
        path.touch()
    for path in (ollama, folder / "manifest=a=b=latest.json"):
        path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HOME", "OLLAMA_MODELS", "LLAMA_CACHE"):
            patch.setenv(variable, str(folder))
        for held in caches.everything():
            if folder not in held.path.parents or ".." in held.path.parts:
                raise ValueError(f"{held} lies elsewhere")


READERS: dict[str, Callable[[bytes, Path], None]] = {
    "gguf": read_gguf,
    "safetensors": read_safetensors,
    "index": read_index,
    "tensorflow": read_tensorflow,
    "config": read_config,
    "tokenizer": read_tokenizer,
    "template": read_template,
    "manifest": read_manifest,
    "container": read_container,
    "record": read_record,
    "receipt": read_receipt,
}


def take_all(weights: Any) -> None:
    """Every tensor, as loading does."""
    for name in weights:
        tensor = refused(functools.partial(weights.__getitem__, name))
        if tensor is not None and tensor.numel():
            tensor.flatten()[-1].item()


def use(tokenizer: Tokenizer | None) -> None:
    """What commands do with a tokenizer."""
    if tokenizer is None:
        return
    ids = refused(lambda: tokenizer.encode_prompt("The sea é\n")) or []
    refused(lambda: tokenizer.decode(ids))
    for token in range(min(tokenizer.vocab_size, 1000)):
        refused(functools.partial(tokenizer.token_bytes, token))


@functools.cache
def session() -> Session:
    """A session that can make requests, of a model that is not there."""
    backend = Backend(models.BPE({character: n for n, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    loaded: Any = SimpleNamespace(tokenizer=Tokenizer(backend), answers=False, repetition_penalty=1.0)
    return Session(loaded, Policy(64))
