"""GGUF files that other programs have downloaded, under the names by which those know them. Nothing here writes.

Ollama keeps a manifest for each name, and files by their hashes; LM Studio keeps USER/NAME/*.gguf; llama.cpp keeps all
files in one folder with a manifest for each, and newer ones in the Hugging Face cache. A manifest may say anything.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

LARGEST, MOST = 1 << 20, 1 << 14  # bytes of a manifest, and entries of a cache, that are read
NAMED = re.compile(r"(\w[\w.-]*(?:/\w[\w.-]*){0,2})(?::([\w.-]+))?")  # a model, with a tag or without
PART = re.compile(r"mmproj.*|.*-\d{5}-of-\d{5}")  # of a model
DIGEST = re.compile("sha256:([0-9a-f]{64})")
LAYER = "application/vnd.ollama.image."
OWN = "registry."  # how the host of Ollama's own models begins, which their names leave out


@dataclass(frozen=True)
class Held:
    """A file, the model that it is of, which of that model's files it is, and whose cache it lies in."""

    model: str
    tag: str
    owner: str
    path: Path

    @property
    def name(self) -> str:
        """What -m understands."""
        return f"{self.model}:{self.tag}"

    def ends_with(self, tag: str) -> bool:
        """Whether a tag is the end of this one, as Q4_0 is of tiny-model-Q4_0."""
        return self.tag.lower().endswith(tuple(f"{mark}{tag.lower()}" for mark in "-._"))


def everything() -> Iterator[Held]:
    """What lies in the caches of llama.cpp, LM Studio and Ollama, in this order."""
    return islice((held for cache in (_llama_cpp, _lm_studio, _ollama) for held in cache()), MOST)


def files(model: str, folder: Path, owner: str) -> Iterator[Held]:
    """The GGUF files of a folder and of the folders in it, without those that are parts of a model."""
    for path in sorted(islice((path for depth in ("*", "*/*") for path in folder.glob(f"{depth}.gguf")), MOST)):
        if not PART.fullmatch(path.stem):
            yield from _held(model, path.stem, owner, path)


def _lm_studio() -> Iterator[Held]:
    for root in (_home(".lmstudio", "models"), _home(".cache", "lm-studio", "models")):
        for folder in sorted(islice(root.glob("*/*"), MOST)):
            yield from files(f"{folder.parent.name}/{folder.name}", folder, "LM Studio")


def _llama_cpp() -> Iterator[Held]:
    caches = _home("Library", "Caches") if sys.platform == "darwin" else _home(".cache")
    root = _given("LLAMA_CACHE") or (_given("XDG_CACHE_HOME") or caches) / "llama.cpp"
    for manifest in sorted(islice(root.glob("manifest=*=*=*.json"), MOST)):
        _, user, name, _ = manifest.name.split("=", 3)
        described = _read(manifest).get("ggufFile")
        file = described.get("rfilename") if isinstance(described, dict) else None
        if isinstance(file, str):
            file = file.replace("/", "_")
            yield from _held(f"{user}/{name}", file.removesuffix(".gguf"), "llama.cpp", root / f"{user}_{name}_{file}")


def _ollama() -> Iterator[Held]:
    root = _given("OLLAMA_MODELS") or _home(".ollama", "models")
    for manifest in sorted(islice((root / "manifests").glob("*/*/*/*"), MOST)):
        layers = _read(manifest).get("layers")
        kinds: dict[Any, Any] = {}
        for layer in layers if isinstance(layers, list) else []:
            if isinstance(layer, dict) and isinstance(layer.get("mediaType"), str):
                kinds[layer["mediaType"].removeprefix(LAYER)] = layer.get("digest")
        digest = DIGEST.fullmatch(str(kinds.get("model")))
        if digest is None or "adapter" in kinds:  # without which it is another model
            continue
        *parts, tag = manifest.relative_to(root / "manifests").parts
        model = "/".join(part for part in parts if part != "library" and not part.startswith(OWN))
        yield from _held(model, tag, "Ollama", root / "blobs" / f"sha256-{digest[1]}")


def _held(model: str, tag: str, owner: str, path: Path) -> Iterator[Held]:
    """The file, if it is there and has a name that can be typed and shown."""
    held = Held(model, tag, owner, path)
    try:
        if NAMED.fullmatch(held.name) and path.is_file():
            yield held
    except OSError:  # a name that no file can have
        return


def _given(variable: str) -> Path | None:
    """The folder that a variable names."""
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def _home(*parts: str) -> Path:
    return Path(os.path.expanduser("~"), *parts)


def _read(manifest: Path) -> dict[str, Any]:
    """A manifest, empty where it is none or too large."""
    try:
        if not manifest.is_file():  # a pipe would never end
            return {}
        with manifest.open("rb") as file:
            text = file.read(LARGEST + 1)
        document = json.loads(text) if len(text) <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
