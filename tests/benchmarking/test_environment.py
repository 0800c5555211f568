"""What is said about the machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llmcli.benchmarking.environment import (
    cpu_facts,
    environment,
    git_commit,
    kernels_in_use,
    last_level_cache,
    machine_name,
    parse_cache_size,
)
from llmcli.ops import registry


def test_environment_is_json_with_the_essentials() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1
    assert facts["threads"] >= 1
    for key in ("torch", "llmcli", "python", "os", "machine", "date"):
        assert facts[key]


@pytest.mark.parametrize(
    ("text", "size"),
    [("32K", 32768), ("32768K", 1 << 25), ("1M", 1 << 20), ("7", 7), ("", None), (None, None), ("x", None)],
)
def test_cache_sizes(text: str | None, size: int | None) -> None:
    assert parse_cache_size(text) == size


def test_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    assert last_level_cache(tmp_path) is None
    for index, size in enumerate(["48K", "32K", "1024K", "32768K"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache(tmp_path) == 32 << 20


def test_cpu_facts_of_the_first_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    first = "processor : 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon(R) 8481C CPU @ 2.70GHz\n"
    info.write_text(first + "\nmodel name : other\n")
    facts = cpu_facts(info)
    assert facts == {"model name": "Xeon(R) 8481C CPU @ 2.70GHz", "cpu family": "6", "model": "143"}
    named = {"cpu": facts["model name"], "cpu_family": "6", "cpu_model": "143", "machine": "x86_64", "cores": 2}
    assert machine_name(named) == "xeon-8481c-f6m143-2-cores"


def test_machine_name_without_facts() -> None:
    assert (
        machine_name({"cpu": None, "cpu_family": None, "cpu_model": None, "machine": "arm64", "cores": 8})
        == "arm64-8-cores"
    )


def test_kernels_in_use_names_every_operator() -> None:
    served = kernels_in_use("cpu")
    assert set(served) == {op.name for op in registry.status() if op.device == "cpu"}
    isa = registry.build_info().get("isa")
    assert set(served.values()) <= {"torch", isa}


def test_git_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    (tmp_path / "csrc").mkdir()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == commit + "+"
