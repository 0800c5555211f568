"""A model in another precision, packed for the kernels, or as a GGUF file: `llmcli convert`. Knows no terminal."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcli import description, loading
from llmcli.checkpoints import directory, gguf, safetensors
from llmcli.checkpoints.file import writing
from llmcli.data.corpus import copied_files
from llmcli.description import gguf_writing
from llmcli.errors import InputError
from llmcli.loading import Loaded
from llmcli.nn import prepacked, quantized

GGUF_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
SLACK = dict.fromkeys(("gemma2", "gemma3_text"), 2.0**-23)  # its norms' parameters are held as float32 scales around 1
PROBE = 64  # tokens of a prompt by whose logits two models are compared


def save(loaded: Loaded, output: Path) -> None:
    """Write a model, packed if it was loaded so, and read it again: the directory appears if the logits are the same.

    Raises ResourceError when the disk is full, InputError where nothing can be written.
    """
    plain = not any(layer.packed is not None for layer in prepacked.linear_layers(loaded.model).values())
    dtype = str(loaded.dtype).removeprefix("torch.")
    config = {**loaded.config, "dtype": dtype}
    if not plain:
        config.pop(quantized.KEY, None)
        config[prepacked.KEY] = prepacked.describe(dtype, loaded.quantized)
    texts = copied_files(description.tokenizer_settings(loaded.path), loaded.tokenizer, config, {})
    with directory.writing(output) as partial:
        directory.write_side_files(partial, texts, loaded.path)
        weights = loaded.model.checkpoint() if plain else prepacked.tensors(loaded.model)
        safetensors.save(partial / safetensors.SINGLE, weights)
        again = loading.load(partial, device="cpu", pack=not plain, kinds=("decoder", "encoder-decoder"))
        if not same(loaded, again, plain=plain):
            raise RuntimeError(f"the model written to {output} gives other logits than the one it was made from")


def save_gguf(loaded: Loaded, output: Path, quantize: str | None = None) -> Loaded:
    """Write a plain model as one GGUF file, its matrices in `quantize` or as they are, and read it again → that model.

    The file appears if its sizes and its tokenizer are those of the model, and the logits of a plain one, too.
    Raises InputError for a model that GGUF cannot describe, ResourceError when the disk is full.
    """
    dtype, model_type = str(loaded.dtype).removeprefix("torch."), loaded.config["model_type"]
    kind, settings = GGUF_TYPES[quantize or dtype], description.tokenizer_settings(loaded.path)
    facts = gguf_writing.metadata(loaded.model, model_type, Path(loaded.name).name, kind)
    facts |= gguf_writing.vocabulary(loaded.tokenizer, settings, loaded.model.config.vocab_size)
    with writing(output) as file:
        gguf.write(file, facts, gguf_writing.tensors(loaded.model, model_type, kind))
        file.flush()
        _same_sizes(loaded.model.config, description.config(Path(file.name)))
        again = loading.load(file.name, device="cpu", dtype=dtype, pack=False)
        special = loaded.tokenizer.backend.get_added_tokens_decoder()
        text = loaded.tokenizer.decode([token for token in range(loaded.tokenizer.vocab_size) if token not in special])
        if loaded.tokenizer.encode_prompt(text) != again.tokenizer.encode_prompt(text):
            raise InputError("the tokenizer cuts texts in a way that cannot be said in a GGUF file")
        if quantize is None and not same(loaded, again, plain=True, slack=SLACK.get(model_type, 0)):
            raise RuntimeError(f"the model written to {output} gives other logits than the one it was made from")
    return replace(again, path=output)


def _same_sizes(config: Any, said: dict[str, Any]) -> None:
    """Raises InputError unless what a file says of a model means its configuration, as far as that decides logits."""
    read = type(config).from_dict(said)
    window = getattr(config, "sliding_window", None)
    if window is not None and read.sliding_window is None:  # said by a context that ends there
        config = replace(config, sliding_window=None, max_position_embeddings=min(window, config.n_positions))
    for field in fields(config):
        wanted, found = getattr(config, field.name), getattr(read, field.name)
        decides = "drop" not in field.name and not field.name.startswith(("init", "model_type"))
        implied = wanted is None and field.name == "n_inner"
        if decides and wanted != found and not implied:
            raise InputError(f"{field.name} = {wanted!r} cannot be said in a GGUF file, which means {found!r}")


def same(old: Loaded, new: Loaded, *, plain: bool, slack: float = 0) -> bool:
    """Whether two models of one configuration give the same logits, by a prompt; of plain ones, by their parameters.

    A plain model's products may be torch's, whose bits depend on where its matrices begin and how they lie. Its vectors
    may differ by `slack`.
    """
    if not plain:
        return torch.equal(probe(old), probe(new))
    pairs = zip(old.model.parameters(), new.model.parameters(), strict=True)
    return all(
        torch.equal(before, after) or (before.dim() == 1 and bool(((before - after).abs() <= slack).all()))
        for before, after in pairs
    )


@torch.inference_mode()
def probe(loaded: Loaded) -> Tensor:
    """Logits after a fixed prompt, (V,) float32."""
    config = loaded.model.config
    ids = torch.arange(min(PROBE, config.n_positions), device=loaded.device) % config.vocab_size
    return loaded.model.start(ids[None])[0][0].float()  # type: ignore[no-any-return]


def change(old: Loaded, new: Loaded) -> float:
    """The largest difference between two models' logits after that prompt, over the range of the old ones."""
    before, after = probe(old), probe(new)
    return float((before - after).abs().max() / (before.max() - before.min()))
