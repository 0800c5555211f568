"""Where models lie: the embedded one, aliases, the Hugging Face cache and hub. Paths only, so that torch stays out."""

from __future__ import annotations

import os
from pathlib import Path

from llmcli.errors import ModelError

DEFAULT = Path(__file__).parent / "default_model"
ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
FETCHED = ["config.json", "*.safetensors", "*.safetensors.index.json", "*tokenizer*.json", "vocab.json", "merges.txt"]
SUFFIXES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".gguf")


def find(spec: str | os.PathLike[str], *, offline: bool = False) -> Path:
    """The file or directory of a model: an existing path, an alias, the hub's cache, the hub, in this order.

    Raises ModelError when there is none; something that looks like a path is never looked up on the hub.
    """
    path = Path(spec)
    if path.exists():
        return path
    name = str(spec)
    if name == "default":
        return DEFAULT
    if name not in ALIASES and (name.startswith((".", "~", os.sep)) or name.count("/") != 1 or path.suffix in SUFFIXES):
        raise ModelError(
            f"{name}: no such file or directory, and neither user/name nor one of: {', '.join(['default', *ALIASES])}"
        )
    return _fetch(ALIASES.get(name, name), offline)


def _fetch(name: str, offline: bool) -> Path:
    """The snapshot of user/name[@revision] in the hub's cache, downloaded when it is not there."""
    # Imported here: it costs as much as half of the start-up budget, and most runs have no need for it.
    import huggingface_hub
    from huggingface_hub import constants

    repository, _, revision = name.partition("@")
    try:
        where = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=FETCHED,
            local_files_only=offline or constants.HF_HUB_OFFLINE,
        )
    except Exception as error:  # the library raises its own, httpx's and OSError
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise ModelError(
            f"{name}: not in the cache {constants.HF_HUB_CACHE} and not fetched ({type(error).__name__}); "
            f"to fetch it: {command} {' '.join(f'--include {pattern!r}' for pattern in FETCHED)}"
        ) from error
    return Path(where)
