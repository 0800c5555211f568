"""One measurement as a file of results/, named by the machine, and the shell in which `llmcli` is this checkout."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmcli.benchmarking.environment import environment, load_average, machine_name

ROOT = Path(__file__).resolve().parents[1]


def arguments(description: str | None, *files: str, many: str | None = None) -> argparse.Namespace:
    """The named files, several under the last name, and --output, the folder of `kept`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in files:
        parser.add_argument(name, type=Path)
    if many is not None:
        parser.add_argument(many, type=Path, nargs="+")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    return parser.parse_args()


@contextmanager
def kept(kind: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A document to fill, written to <machine>.<kind>.json when the block has ended without an error.

    What follows a dot in `kind` is not part of the schema's name.
    """
    facts = environment()
    document: dict[str, Any] = {"schema": f"llmcli/bench-{kind.partition('.')[0]}/1", "environment": facts}
    loads = [load_average()]
    yield document
    document["load_averages"] = [*loads, load_average()]
    (folder / f"{machine_name(facts)}.{kind}.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    json.dump({key: value for key, value in document.items() if key != "environment"}, sys.stdout, indent=1)
    print()


@contextmanager
def workshop(threads: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """An empty folder that is gone afterwards, and an environment for `shell`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        program = place / "bin" / "llmcli"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmcli "$@"\n')
        program.chmod(0o755)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("LLMCLI_")}
        path = f"{program.parent}{os.pathsep}{variables['PATH']}"
        yield place, variables | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}


def shell(script: str, place: Path, variables: dict[str, str]) -> tuple[str, float]:
    """What a script wrote to stdout, and its seconds. Raises CalledProcessError."""
    began = time.perf_counter()
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=place, env=variables, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout, time.perf_counter() - began
