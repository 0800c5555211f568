"""doctor: one document for people and for scripts, and exit codes that CI can use."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli import diagnosis
from llmcli.cli import cli
from llmcli.commands.options import ModelChoice
from llmcli.errors import ResourceError
from llmcli.ops import registry


@pytest.fixture(autouse=True)
def _whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"path": "default_model", "sha256": {}, "problem": None}
    monkeypatch.setattr(diagnosis, "default_model", lambda: whole)


def test_the_page_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in diagnosis.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for operator in registry.status():
        assert operator.name in result.stdout
    for name in ("versions", "cpu", "memory", "LLMCLI_CPU_ISA"):
        assert name in result.stdout


def test_json_carries_the_same_facts() -> None:
    document = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    assert document["schema"] == "llmcli/doctor/1"
    assert [row["name"] for row in document["operators"]] == [row.name for row in registry.status()]
    assert document["kernels"]["kernels"] == (registry.kernels is not None)
    assert document["cpu"]["threads"] >= 1
    assert document["memory"]["total_bytes"] > 0


def test_require_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_has_kernel", lambda name, device: False)
    result = CliRunner().invoke(cli, ["doctor", "--require-kernels"])
    assert result.exit_code == 6
    assert "OPERATOR" in result.stdout
    assert result.stderr.count("\n") == 1
    monkeypatch.setattr(registry, "_has_kernel", lambda name, device: True)
    assert CliRunner().invoke(cli, ["doctor", "--require-kernels", "--device", "cpu"]).exit_code == 0


def test_inference_needs_no_backward_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_has_kernel", lambda name, device: not name.endswith("_backward"))
    registry.require_kernels("cpu", training=False)
    assert CliRunner().invoke(cli, ["doctor", "--require-kernels"]).exit_code == 6


def test_a_gpu_has_a_kernel_for_all_that_it_runs_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a cache in another type than the activations'; bindings are read, for torch may be a CPU build."""
    bindings = "".join(path.read_text() for path in (Path(__file__).parents[2] / "csrc/ops").glob("*_cuda.cpp"))
    monkeypatch.setattr(registry, "_has_kernel", lambda name, device: f'm.impl("{name}"' in bindings)
    for cache_dtype, refused in (("auto", False), ("int8", True)):
        choice = ModelChoice("cuda:0", "auto", None, True, None, True, cache_dtype=cache_dtype)
        with pytest.raises(ResourceError, match="for cached_attention;") if refused else nullcontext():
            choice.prepare()
    registry.require_kernels("cuda:0", training=True)


def test_a_damaged_model_exits_with_5(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = {"path": "default_model", "sha256": {}, "problem": "the checksum of x is not the published one"}
    monkeypatch.setattr(diagnosis, "default_model", lambda: damaged)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 5
    assert any("checksum" in problem for problem in json.loads(result.stdout)["problems"])


def test_misspelt_variables_are_named() -> None:
    environment = {"LLMCLI_DOCTOR_FORMT": "json", "LLMCLI_DOCTOR_JSON": "1", "LLMCLI_BENCH_KERNELS_SHRINK": "1"}
    problems = json.loads(CliRunner().invoke(cli, ["doctor"], env=environment).stdout)["problems"]
    assert any("LLMCLI_DOCTOR_FORMT" in text and "did you mean LLMCLI_DOCTOR_FORMAT" in text for text in problems)
    assert not any(
        name in text for name in ("LLMCLI_DOCTOR_JSON ", "LLMCLI_BENCH_KERNELS_SHRINK ") for text in problems
    )
