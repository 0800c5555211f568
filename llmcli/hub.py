"""Where models lie: the embedded one, aliases, the Hugging Face cache and hub. Paths only, so that torch stays out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from llmcli.checkpoints import safetensors
from llmcli.errors import ModelError
from llmcli.models import MODELS

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


@dataclass(frozen=True)
class Known:
    """A model that a name leads to without typing a path, and whether it can be used now."""

    name: str
    kind: str  # embedded, alias or cached
    repository: str | None
    path: Path | None
    size: int  # bytes on disk
    status: str  # "ready", "not downloaded", or what is wrong with it


def known() -> list[Known]:
    """The embedded model, the aliases, and every model in the hub's cache. Touches no network."""
    cached = {name: snapshot for name in cached_names() if (snapshot := cached_snapshot(name)) is not None}
    models = [Known("default", "embedded", None, DEFAULT, _size(DEFAULT), status(DEFAULT))]
    for alias, repository in ALIASES.items():
        path = cached.pop(repository, None)
        state = "not downloaded" if path is None else status(path)
        models.append(Known(alias, "alias", repository, path, _size(path), state))
    for name, path in sorted(cached.items()):
        models.append(Known(name, "cached", name, path, _size(path), status(path)))
    return models


def cache() -> Path:
    """The directory of the Hugging Face cache; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_names() -> list[str]:
    """user/name of every model repository in the cache."""
    try:
        folders = [folder.name for folder in cache().iterdir() if folder.name.startswith("models--")]
    except OSError:
        return []
    return [folder.removeprefix("models--").replace("--", "/") for folder in folders]


def cached_snapshot(name: str) -> Path | None:
    """The cached files of user/name: those of its main branch, else of its newest revision; None without any."""
    folder = cache() / ("models--" + name.replace("/", "--"))
    try:
        revisions = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    except OSError:
        return None
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        main = folder
    return main if main in revisions else revisions[-1] if revisions else None


def status(path: Path) -> str:
    """Whether the files of a model are all there and of a kind that llmcli reads: "ready", or what is wrong."""
    if not path.is_dir():
        return "not in this installation"
    try:
        kind = json.loads((path / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return "no config.json with a model_type"
    if kind not in MODELS:
        return f"unsupported architecture {kind}"
    try:
        safetensors.files(path)
    except ModelError as error:
        return "pickled weights only" if "pickle" in str(error) else "weights are missing"
    if not any((path / name).exists() for name in ("tokenizer.json", "vocab.json", "encoder.json")):
        return "no tokenizer"
    return "ready"


def _size(path: Path | None) -> int:
    if path is None or not path.is_dir():
        return 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
