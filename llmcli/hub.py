"""Where models lie: the embedded one, aliases, the Hugging Face cache and hub. Paths only, so that torch stays out."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmcli.checkpoints import safetensors
from llmcli.errors import InputError, ModelError
from llmcli.models import MODELS

DEFAULT = Path(__file__).parent / "default_model"
ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
DESCRIPTION = [
    "config.json", "generation_config.json", "*.safetensors.index.json", "*tokenizer*.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "encoder.json", "vocab.bpe",
]  # fmt: skip
WEIGHTS = ["*.safetensors"]
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # user/name
SUFFIXES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".gguf")


def find(spec: str | os.PathLike[str], *, offline: bool = False) -> Path:
    """The file or directory of a model: an existing path, an alias, the hub's cache, the hub, in this order.

    Raises ModelError when there is none; something that looks like a path is never looked up on the hub. Raises
    InputError for an empty name, which a script's unset variable leaves.
    """
    if not str(spec):
        raise InputError("expected a model, got an empty name; leave -m out for the embedded model")
    path = Path(spec)
    if path.exists():
        return path
    name = str(spec)
    if name == "default":
        return DEFAULT
    repository, _, revision = ALIASES.get(name, name).partition("@")
    if not REPOSITORY.fullmatch(repository) or path.suffix in SUFFIXES:
        raise ModelError(
            f"{name}: no such file or directory, and neither user/name nor one of: {', '.join(['default', *ALIASES])}"
        )
    cached = cached_snapshot(repository, revision)
    if cached is not None and status(cached) == "ready":
        return cached
    if name not in ALIASES and path.parent.is_dir():
        raise ModelError(f"{name}: no such file or directory, though {path.parent} is here: a misspelt path?")
    return _fetch(repository, revision, offline)


def _fetch(repository: str, revision: str, offline: bool) -> Path:
    """Download what a model needs of user/name at a revision ("" is the main branch), or say why it cannot be."""
    # Imported here: this takes as long as half of torch, and a model that is in the cache does without.
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"{repository}@{revision}" if revision else repository
    wanted = " ".join(f"--include '{pattern}'" for pattern in ("*.json", "*.txt", "*.jinja", *WEIGHTS))
    command = f"hf download {repository} {f'--revision {revision} ' if revision else ''}{wanted}"
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name} is not in the cache {cache()}, and this run is offline; to fetch it: {command}")
    try:
        # Weights come last, at the same commit: where they are, an interrupted download left nothing out.
        described = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=DESCRIPTION)
        commit = Path(described).name
        snapshot = huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=WEIGHTS)
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{name} has no revision {revision or 'main'}; name a branch, a tag or a full commit"
        ) from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repository}"
        raise ModelError(f"{name} is gated: agree to its conditions at {page} and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name}: {constants.ENDPOINT} has no such repository, or a private one; check the name, or set HF_TOKEN"
        ) from error
    except Exception as error:  # the library raises its own errors, its HTTP library's and OSError
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name} is not in the cache {cache()} and could not be fetched ({type(error).__name__}: {reason}); "
            f"to try by hand: {command}"
        ) from error
    if (problem := status(Path(snapshot))) != "ready":
        raise ModelError(f"{name} cannot be used: {problem}; llmcli reads config.json, *.safetensors and a tokenizer")
    return Path(snapshot)


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


def cached_snapshot(name: str, revision: str = "") -> Path | None:
    """The cached files of user/name at a branch, tag or full commit; None when they are not there.

    Without a revision: those of its main branch, else of the newest one in the cache.
    """
    folder = cache() / ("models--" + name.replace("/", "--"))
    try:
        revisions = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    except OSError:
        return None
    try:
        commit = (folder / "refs" / (revision or "main")).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    chosen = folder / "snapshots" / commit
    if chosen in revisions:
        return chosen
    return revisions[-1] if revisions and not revision else None


def status(path: Path) -> str:
    """Whether the files of a model are all there and of a kind that llmcli reads: "ready", or what is wrong."""
    if not path.is_dir():
        return "not in this installation"
    try:
        kind = json.loads((path / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
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
