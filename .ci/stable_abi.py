"""Builds the wheel once and runs the operator tests on it under other torch versions; records docs/stable_abi.md.

    python3 .ci/stable_abi.py 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0

Each version gets a fresh virtual environment; the binary is never rebuilt. Exit 3 when a version fails its tests.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "stable_abi.md"


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run and capture, without raising."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def build(scratch: Path) -> Path:
    """The wheel, from pip's isolated build."""
    done = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(scratch), ".")
    if done.returncode:
        sys.exit(done.stderr)
    return next(scratch.glob("*.whl"))


def check(version: str, wheel: Path, scratch: Path) -> tuple[str, bool]:
    """One row of the record, and whether the operator tests passed with kernels loaded."""
    home = scratch / version
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    requirements = (ROOT / "tests" / "requirements.txt").read_text().split()
    for packages in (["setuptools", f"torch=={version}"], [str(wheel), *requirements, f"torch=={version}"]):
        done = run(python, "-m", "pip", "install", "-q", *packages)
        if done.returncode:
            return f"| {version} | not installed: {done.stderr.strip().splitlines()[-1]} | |", True
    facts = run(
        python,
        "-c",
        "import torch, llmcli.ops.registry as r\n"
        "r.require_kernels('cpu'); print(torch.__version__, r.build_info()['isa'])",
        cwd=scratch,
    )
    tests = run(str(home / "bin" / "pytest"), "tests/ops")
    summary = re.search(r"\d+ passed.*", tests.stdout)
    passed = facts.returncode == 0 and tests.returncode == 0
    last = (facts.stderr + tests.stdout + tests.stderr).strip().splitlines()[-1]
    loaded = facts.stdout.strip() or "does not load"
    result = re.sub(r" in .*", "", summary[0]) if summary else last
    return f"| {loaded} | {result} | {'yes' if passed else 'no'} |", passed


def main(versions: list[str]) -> int:
    """Check every version and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wheel = build(scratch)
        with zipfile.ZipFile(wheel) as archive:
            binary = next(name for name in archive.namelist() if name.endswith(".so"))
            digest = hashlib.sha256(archive.read(binary)).hexdigest()[:16]
        rows, passed = [], True
        for version in versions:
            row, good = check(version, wheel, scratch)
            print(row, flush=True)
            rows.append(row)
            passed = passed and good
    RECORD.write_text(
        "# One binary under many versions of torch\n\n"
        f"Built once against torch 2.13.0 for the stable ABI of torch 2.11 ({binary}, sha256 {digest}…), "
        f"then loaded and tested under each version, never rebuilt. {date.today()}, `python3 .ci/stable_abi.py "
        f"{' '.join(versions)}`.\n\n"
        "| torch, instruction set | operator tests | kernels in use and all passed |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )
    return 0 if passed else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"]))
