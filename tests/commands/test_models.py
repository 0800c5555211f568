"""The list of models, for people and for scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from llmcli.hub import ALIASES
from tests.conftest import Result


def test_models(shell: Callable[..., Result], tmp_path: Path, tiny_gpt2: Path) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc")
    nobody = {"HOME": str(tmp_path), "LLAMA_CACHE": str(tmp_path), "OLLAMA_MODELS": str(tmp_path)}
    result = shell("llmcli models", HF_HUB_CACHE=str(tmp_path / "hub"), **nobody)
    assert result.code == 0
    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert set(rows) == {"MODEL", "default", *ALIASES, "someone/tiny"}
    assert rows["someone/tiny"].endswith("ready")
    assert str(tmp_path / "hub") in result.err
    document = json.loads(shell("llmcli models --json", HF_HUB_CACHE=str(tmp_path / "hub")).out)
    assert document["schema"] == "llmcli/models/1"
    ready = {row["name"] for row in document["models"] if row["ready"]}
    assert "someone/tiny" in ready
    assert "gpt2" not in ready


def test_a_hidden_cache_is_an_empty_one(shell: Callable[..., Result]) -> None:
    result = shell("env -u HOME llmcli models", HF_HUB_CACHE="/proc/self/mem/x")
    assert result.code == 0
    assert "not downloaded" in result.out
