"""GGUF files in other programs' caches: found by name, listed, read in place; manifests that lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcli import caches, hub
from llmcli.errors import ModelError
from tests import gguf_files
from tests.conftest import Result


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    gguf_files.write(tiny_gpt2, path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any cache."""
    for name in ("LLAMA_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def put(path: Path, source: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    return path


def ollama(home: Path, source: Path, name: str, **layers: str) -> Path:
    """Store a file as `ollama pull` does."""
    root, digest = home / ".ollama" / "models", hashlib.sha256(name.encode()).hexdigest()
    kinds = {"model": f"sha256:{digest}", "template": f"sha256:{'0' * 64}", **layers}
    rows = [{"mediaType": f"{caches.LAYER}{kind}", "digest": value, "size": 1} for kind, value in kinds.items()]
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": rows}))
    return put(root / "blobs" / f"sha256-{digest}", source)


def llama_cpp(root: Path, source: Path, repository: str, file: str) -> Path:
    """Store a file as `llama-cli -hf` does."""
    path = put(root / f"{repository.replace('/', '_')}_{file.replace('/', '_')}", source)
    manifest = root / f"manifest={repository.replace('/', '=')}=latest.json"
    manifest.write_text(json.dumps({"ggufFile": {"rfilename": file, "size": 1}}))
    return path


def test_every_cache_by_its_own_names(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = put(home / "hub" / "models--a--b-GGUF" / "snapshots" / "0123" / "b-Q4_0.gguf", model)
    two = put(one.with_name("b-Q8_0.gguf"), model)
    three = put(home / ".lmstudio" / "models" / "c" / "d" / "d.F16.gguf", model)
    four = put(home / ".cache" / "lm-studio" / "models" / "e" / "f" / "f-BF16.gguf", model)
    five = llama_cpp(home / ".cache" / "llama.cpp", model, "g/h", "Q4_0/h-Q4_0.gguf")
    six = ollama(home, model, "registry.example/library/llama3.2/1b")
    seven = ollama(home, model, "registry.example/library/llama3.2/latest")
    eight = ollama(home, model, "hf.co/i/j/Q4_0")
    for part in ("mmproj-d.gguf", "d-00001-of-00002.gguf", "a b.gguf", "\x1b[2J.gguf"):
        put(three.with_name(part), model)
    named = {
        "a/b-GGUF:Q4_0": one, "a/b-gguf:q8_0": two, "a/b-GGUF:b-Q8_0.gguf": two, "c/d": three, "c/d:f16": three,
        "e/f:f-BF16": four, "g/h": five, "g/h:Q4_0": five, "llama3.2:1b": six, "llama3.2:latest": seven,
        "llama3.2": seven, "hf.co/i/j:Q4_0": eight,
    }  # fmt: skip
    before = sorted(home.rglob("*"))
    assert {name: hub.find(name, offline=True) for name in named} == named
    listed = {model.name: (model.kind, model.status) for model in hub.known() if model.path in named.values()}
    assert listed == {
        "a/b-GGUF:b-Q4_0": ("Hugging Face", "ready"),
        "a/b-GGUF:b-Q8_0": ("Hugging Face", "ready"),
        "g/h:Q4_0_h-Q4_0": ("llama.cpp", "ready"),
        "c/d:d.F16": ("LM Studio", "ready"),
        "e/f:f-BF16": ("LM Studio", "ready"),
        "llama3.2:1b": ("Ollama", "ready"),
        "llama3.2:latest": ("Ollama", "ready"),
        "hf.co/i/j:Q4_0": ("Ollama", "ready"),
    }
    assert len(hub.known()) == 1 + len(hub.ALIASES) + len(listed)
    assert sorted(home.rglob("*")) == before
    moved = home / "moved"
    (home / ".ollama" / "models").rename(moved)
    monkeypatch.setenv("OLLAMA_MODELS", str(moved))
    monkeypatch.setenv("LLAMA_CACHE", str(home / ".cache" / "llama.cpp"))
    assert hub.find("llama3.2:1b") == moved / "blobs" / six.name
    assert hub.find("g/h") == five


def test_names_that_lead_to_no_file_or_to_several(home: Path, model: Path) -> None:
    for tag in ("Q4_0", "BF16"):
        put(home / ".lmstudio" / "models" / "a" / "b" / f"b-{tag}.gguf", model)
    for name, said in (
        ("a/b", r"got 2; of this model there are: a/b:b-BF16, a/b:b-Q4_0"),
        ("a/b:F16", r"got 0; of this model there are: a/b:b-BF16, a/b:b-Q4_0"),
        ("a/c:Q4_0", r"nor in the caches .* hf download a/c --include '\*Q4_0\*.gguf'"),
        ("llama3.2:1b", r"no such file or directory, nor in the caches that 'llmcli models' lists$"),
        ("llama3.2", r"no such file or directory, and neither user/name"),
    ):
        with pytest.raises(ModelError, match=said):
            hub.find(name, offline=True)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", '{"layers": 3}', '{"layers": [3]}', '{"layers": [{"mediaType": 3}]}', "[" * 100_000, "\xff",
        '{"ggufFile": 3}', '{"ggufFile": {"rfilename": ["x"]}}', '{"ggufFile": {"rfilename": "../../secret.gguf"}}',
        '{"ggufFile": {"rfilename": "\\u0000.gguf"}}', f'{{"ggufFile": {{"rfilename": "{"x" * 5000}.gguf"}}}}',
        " " * (caches.LARGEST + 1),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_manifests_that_are_none(home: Path, model: Path, text: str) -> None:
    put(home / "secret.gguf", model)
    for manifest in (
        home / ".ollama" / "models" / "manifests" / "registry.example" / "library" / "x" / "latest",
        home / ".cache" / "llama.cpp" / "manifest=a=b=latest.json",
    ):
        manifest.parent.mkdir(parents=True)
        manifest.write_text(text, "latin-1")
    assert list(caches.everything()) == []


@pytest.mark.parametrize(
    "layers",
    [
        {"model": "sha256:../../../../secret.gguf"},
        {"model": "sha256:" + "A" * 64},
        {"model": "sha256:" + "a" * 64},  # which is not there
        {"adapter": "sha256:" + "0" * 64},
    ],
    ids=str,
)
def test_manifests_that_reach_out_or_name_another_model(home: Path, model: Path, layers: dict[str, Any]) -> None:
    put(home / "secret.gguf", model)
    ollama(home, model, "registry.example/library/x/latest", **layers)
    assert list(caches.everything()) == []


def test_what_is_no_regular_file_is_not_opened(home: Path, model: Path) -> None:
    ollama(home, model, "registry.example/library/x/latest")
    manifest = home / ".ollama" / "models" / "manifests" / "registry.example" / "library" / "x" / "latest"
    manifest.unlink()
    os.mkfifo(manifest)
    (home / ".lmstudio" / "models" / "a" / "b").mkdir(parents=True)
    os.mkfifo(home / ".lmstudio" / "models" / "a" / "b" / "b.gguf")
    assert list(caches.everything()) == []


def test_in_a_shell(shell: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    root = tmp_path / "home"
    blob = ollama(root, model, "registry.example/library/tiny/latest")
    shutil.copyfile(blob, ollama(root, model, "registry.example/library/other/latest"))
    other = next(path for path in blob.parent.iterdir() if path != blob)
    other.write_bytes(other.read_bytes().replace(b"gpt2", b"gpt9", 2))
    surroundings = {"HOME": str(root), "HF_HUB_CACHE": str(tmp_path / "hub")}
    made = shell(f"llmcli generate -m tiny The -n 8; llmcli generate -m {model} The -n 8", **surroundings)
    assert (made.code, made.err) == (0, "")
    assert made.out[: len(made.out) // 2] == made.out[len(made.out) // 2 :] != ""
    document = json.loads(shell("llmcli models --json", **surroundings).out)
    rows = {row["name"]: row for row in document["models"] if row["kind"] == "Ollama"}
    assert (rows["tiny:latest"]["path"], rows["tiny:latest"]["ready"]) == (str(blob), True)
    assert rows["other:latest"]["status"] == "the architecture 'gpt9' is not supported in GGUF files"
    table = shell("llmcli models", **surroundings).out
    assert next(line.split() for line in table.splitlines() if line.startswith("tiny"))[1] == "Ollama"
