"""Names to paths: existing files first, then aliases and the cache; what the cache holds and what is wrong with it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from llmcli import caches, hub
from llmcli.errors import ModelError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(caches, "everything", lambda: iter(()))  # of whoever runs this
    return tmp_path / "cache"


def put(cache: Path, name: str, source: Path, *, revision: str = "0123abc") -> Path:
    """Store a model as the hub's library lays it out."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    shutil.copytree(source, snapshot)
    return snapshot


def test_empty_cache(cache: Path) -> None:
    models = hub.known()
    assert [model.name for model in models] == ["default", *hub.ALIASES]
    assert {model.status for model in models[1:]} == {"not downloaded"}


def test_cached_models_are_listed_and_found(cache: Path, tiny_gpt2: Path) -> None:
    alias = put(cache, "openai-community/gpt2", tiny_gpt2)
    other = put(cache, "someone/tiny-model", tiny_gpt2)
    models = {model.name: model for model in hub.known()}
    assert models["gpt2"].path == alias
    assert models["someone/tiny-model"].kind == "cached"
    assert models["gpt2"].status == models["someone/tiny-model"].status == "ready"
    assert models["gpt2"].size == sum(file.stat().st_size for file in tiny_gpt2.iterdir())
    assert hub.find("gpt2") == alias
    assert hub.find("someone/tiny-model", offline=True) == other


def test_the_main_branch_is_preferred(cache: Path, tiny_gpt2: Path) -> None:
    main = put(cache, "a/b", tiny_gpt2, revision="aaa")
    shutil.copytree(tiny_gpt2, main.parent / "bbb")
    assert hub.cached_snapshot("a/b") == main
    (cache / "models--a--b" / "refs" / "main").unlink()
    assert hub.cached_snapshot("a/b") is not None


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json with a model_type"),
        (lambda path: (path / "config.json").write_text("[]"), "no config.json with a model_type"),
        (lambda path: (path / "config.json").write_text('{"model_type": "x"}'), "unsupported architecture x"),
        (lambda path: (path / "model.safetensors").unlink(), "weights are missing"),
        (lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"), "pickled weights only"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer"),
        (shutil.rmtree, "not in this installation"),
    ],
)
def test_status_says_what_is_wrong(tmp_path: Path, tiny_gpt2: Path, change: object, status: str) -> None:
    assert callable(change)
    path = shutil.copytree(tiny_gpt2, tmp_path / "model")
    assert hub.status(path) == "ready"
    change(path)
    assert hub.status(path) == status


def test_an_existing_path_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert hub.find("gpt2") == Path("gpt2")
    assert hub.find("default") == hub.DEFAULT


@pytest.mark.parametrize("name", ["./gpt3", "/no/such/place", "models/x.safetensors", "a/b/c", "gpt3", "~/x", "x.bin"])
def test_mistyped_paths_never_reach_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("looked up on the hub"))
    with pytest.raises(ModelError, match="no such file or directory"):
        hub.find(name)


def test_a_directory_that_is_here_makes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("looked up on the hub"))
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match=r"models/tinny: no such file or directory, though models is here"):
        hub.find("models/tinny")


def test_revisions(cache: Path, tiny_gpt2: Path) -> None:
    main = put(cache, "a/b", tiny_gpt2, revision="aaa")
    other = put(cache, "a/b", tiny_gpt2, revision="bbb")
    refs = cache / "models--a--b" / "refs"
    (refs / "main").write_text("aaa")
    (refs / "pr").mkdir()
    (refs / "pr" / "1").write_text("bbb")
    assert hub.find("a/b") == hub.find("a/b@main") == hub.find("a/b@aaa") == main
    assert hub.find("a/b@bbb") == hub.find("a/b@pr/1") == other
    with pytest.raises(ModelError, match=r"a/b@v9 is not in the cache .* hf download a/b --revision v9 --include"):
        hub.find("a/b@v9")


def test_a_cached_model_needs_neither_network_nor_the_library(cache: Path, tiny_gpt2: Path) -> None:
    """Though this run is online: what is cached is used as it is."""
    path = put(cache, "a/b", tiny_gpt2)
    script = "import sys; from llmcli import hub; print(hub.find('a/b'), 'huggingface_hub.hf_api' in sys.modules)"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(path), "False"]


def test_download(cache: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    shutil.copytree(tiny_gpt2, tmp_path / "fetched")
    assert hub.find("gpt2") == tmp_path / "fetched"
    name = "openai-community/gpt2"
    assert asked == [(name, None, hub.DESCRIPTION), (name, "fetched", hub.WEIGHTS)]
    hub.find("a/b@v1")
    assert asked[2][1] == "v1"
    (tmp_path / "fetched" / "model.safetensors").unlink()  # a repository of pickles: none of them is fetched
    with pytest.raises(ModelError, match="a/b cannot be used: weights are missing"):
        hub.find("a/b")


def test_download_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def fail(error: Exception) -> None:
        def download(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    fail(ConnectionError("no route\nsecond line"))
    with pytest.raises(ModelError, match=r"a/b is not in the cache .*\(ConnectionError: no route second line\)"):
        hub.find("a/b")
    fail(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        hub.find("a/b")


def test_offline_miss_says_how_to_fetch(cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        hub.find("gpt2", offline=True)
    for words in ("openai-community/gpt2", str(cache), "hf download openai-community/gpt2"):
        assert words in str(caught.value)
