"""The facts behind `llmcli doctor`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import llmcli
from llmcli import diagnosis

PACKAGE = Path(llmcli.__file__).parent
SETUP = Path(__file__).parents[1] / "setup.py"


def test_every_variable_that_is_read_is_in_the_table() -> None:
    source = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if path.name != "diagnosis.py")
    read = set(re.findall(r"(?:environ|getenv)[^\n]{0,20}?[\"']([A-Z][A-Z0-9_]+)", source + SETUP.read_text("utf-8")))
    others = {"TERM", "CXX", "HF_HUB_DISABLE_PROGRESS_BARS", "PYTHONPATH", "PYTHONSAFEPATH"}
    others |= {"RANK", "LOCAL_RANK", "WORLD_SIZE"}  # of torchrun
    assert read - others <= set(diagnosis.VARIABLES)


def test_available_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable:    5 kB\n")
    assert diagnosis.available_memory(tmp_path / "meminfo") == 5120
    assert diagnosis.available_memory(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: None, None),
        (lambda path: (path / "weights").write_bytes(b"changed"), "the checksum of weights"),
        (lambda path: (path / "weights").unlink(), "No such file"),
        (lambda path: (path / "SHA256SUMS").unlink(), "No such file"),
    ],
)
def test_default_model_is_checked(tmp_path: Path, change: object, problem: str | None) -> None:
    assert callable(change)
    sums = []
    for name in ("weights", "config.json"):
        (tmp_path / name).write_bytes(name.encode())
        sums.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
    (tmp_path / "SHA256SUMS").write_text("".join(sums))
    change(tmp_path)
    found = diagnosis.default_model(tmp_path)["problem"]
    assert found is None if problem is None else problem in found


def test_a_gpu_that_is_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="Old GPU", total_memory=8 << 30)
    for name, value in {"device_count": 1, "get_device_properties": gpu, "get_device_name": "Old GPU"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    problem = "cuda:0: Old GPU has compute capability 7.0, expected 8.0 or newer; --device auto computes on the CPU"
    assert problem in diagnosis.diagnose()["problems"]
