"""A model in another precision, or packed for the kernels: what `llmcli convert` writes. Knows no terminal."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llmcli import description, loading
from llmcli.checkpoints import directory, safetensors
from llmcli.data import copied_files
from llmcli.loading import Loaded
from llmcli.nn import prepacked, quantized

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
        if not torch.equal(probe(loaded), probe(again)):
            raise RuntimeError(f"the model written to {output} gives other logits than the one it was made from")


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
