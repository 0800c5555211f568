"""What the build says when it cannot build; the build itself is what every other test stands on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools")


def setup(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py from the checkout with changed environment variables."""
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_no_compiler_names_the_remedies() -> None:
    done = setup("--name", CXX="no-such-compiler")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: expected a C++17 compiler, found none")
    assert "LLMCLI_BUILD_KERNELS=0" in line


def test_without_kernels_no_compiler_is_asked_for() -> None:
    done = setup("--name", CXX="no-such-compiler", LLMCLI_BUILD_KERNELS="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("llmcli")


def test_kernels_are_there_unless_they_were_declined() -> None:
    from llmcli.ops import registry

    declined = os.environ.get("LLMCLI_BUILD_KERNELS") == "0"
    assert (registry.kernels is None) == declined, registry.why_no_kernels
