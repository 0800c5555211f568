"""Where models lie: the embedded one, aliases, the Hugging Face cache and hub. Paths only, so that torch stays out."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmcli import caches
from llmcli.caches import Held
from llmcli.checkpoints import gguf, safetensors
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
    """The file or directory of a model: an existing path, an alias, the hub's cache, others' caches, the hub, in turn.

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
    on_hub = bool(REPOSITORY.fullmatch(repository)) and path.suffix not in SUFFIXES
    cached = cached_snapshot(repository, revision) if on_hub else None
    if cached is not None and status(cached) == "ready":
        return cached
    if name not in ALIASES and (file := _file_of_others(name)) is not None:
        return file
    if not on_hub:
        raise ModelError(
            f"{name}: no such file or directory, and neither user/name nor one of: {', '.join(['default', *ALIASES])}"
        )
    if name not in ALIASES and path.parent.is_dir():
        raise ModelError(f"{name}: no such file or directory, though {path.parent} is here: a misspelt path?")
    return _fetch(repository, revision, offline)


def _file_of_others(name: str) -> Path | None:
    """The GGUF file that a name with or without a tag leads to; None where nobody has that model.

    Raises ModelError where nobody has a file of that tag, or where the name leads to several.
    """
    found = caches.NAMED.fullmatch(name)
    if found is None:
        return None
    model, tag = found[1], found[2] or ""
    here = [held for held in gguf_files() if held.model.lower() == model.lower()]
    fitting = [held for held in here if not tag or held.ends_with(tag)]
    exact = [held for held in here if held.tag.lower() == (tag or "latest").lower().removesuffix(".gguf")]
    if len({held.tag for held in exact or fitting}) == 1:
        return (exact or fitting)[0].path
    if here:
        names = ", ".join(dict.fromkeys(held.name for held in fitting or here))
        raise ModelError(f"{name}: expected the name of one file, got {len(fitting)}; of this model there are: {names}")
    if tag:
        get = f"; to fetch it: hf download {model} --include '*{tag}*.gguf'" if "/" in model else ""
        raise ModelError(f"{name}: no such file or directory, nor in the caches that 'llmcli models' lists{get}")
    return None


def gguf_files() -> Iterator[Held]:
    """GGUF files in the Hugging Face cache, then in those of other programs."""
    for name in cached_names():
        snapshot = cached_snapshot(name)
        if snapshot is not None:
            yield from caches.files(name, snapshot, "Hugging Face")
    yield from caches.everything()


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
    kind: str  # embedded, alias, cached, or whose GGUF file it is
    repository: str | None
    path: Path | None
    size: int  # bytes on disk
    status: str  # "ready", "not downloaded", or what is wrong with it


def known() -> list[Known]:
    """The embedded model, the aliases, every model in the hub's cache, and others' GGUF files. Touches no network."""
    cached = {name: snapshot for name in cached_names() if (snapshot := cached_snapshot(name)) is not None}
    models = [Known("default", "embedded", None, DEFAULT, _size(DEFAULT), status(DEFAULT))]
    for alias, repository in ALIASES.items():
        path = cached.pop(repository, None)
        state = "not downloaded" if path is None else status(path)
        models.append(Known(alias, "alias", repository, path, _size(path), state))
    held = list(gguf_files())
    for name, path in sorted(cached.items()):
        if (path / "config.json").exists() or not any(file.model == name for file in held):
            models.append(Known(name, "cached", name, path, _size(path), status(path)))
    for file in held:
        state = "ready" if gguf.recognised(file.path) else "no GGUF file"
        models.append(Known(file.name, file.owner, None, file.path, file.path.stat().st_size, state))
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
