"""Bits per byte of the embedded model and of the version that it took the place of, on the text that both held out.

    python -m benchmarks.embedded_model BOOKS

BOOKS is the folder of its card, llmcli/default_model/README.md; the last 2 % of every book were held out. The version
before comes from git, so this needs a clone with its history. Takes a minute or two.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.document import ROOT, arguments, kept, shell, workshop
from llmcli.data import corpus

MODEL = "llmcli/default_model"
HELD_OUT = 0.02


def git(*command: str) -> bytes:
    """What git writes about this repository. Raises CalledProcessError."""
    return subprocess.run(["git", "-C", str(ROOT), *command], stdout=subprocess.PIPE, check=True).stdout


def versions() -> list[str]:
    """The commits that changed the weights, the newest first."""
    return git("log", "--format=%h", "--", f"{MODEL}/model.safetensors").decode().split()


def measure(books: Path, threads: int) -> dict[str, Any]:
    """Perplexity under the default protocol of both versions on all held-out texts."""
    held = corpus.split(corpus.read_documents(str(books)), HELD_OUT, 0)[1]
    new, old = versions()[:2]
    found = {}
    with workshop(threads) as (place, variables):
        for number, document in enumerate(held):
            (place / f"{number:02}.txt").write_text(document.text, encoding="utf-8")
        for name, commit in (("now", new), ("before", old)):
            with tarfile.open(fileobj=io.BytesIO(git("archive", commit, MODEL))) as files:
                files.extractall(place / name, filter="data")
            command = f"llmcli perplexity -m {name}/{MODEL} --json *.txt"
            figures = json.loads(shell(command, place, variables)[0])
            wanted = ("bits_per_byte", "ppl", "nll_per_token", "n_tokens", "n_bytes", "ci", "protocol")
            found[name] = {"commit": commit, **{key: figures[key] for key in wanted}}
    return {"n_books": len(held), "versions": found}


if __name__ == "__main__":
    given = arguments(__doc__, "books")
    with kept("embedded-model", given.output) as document:
        document |= measure(given.books, given.threads)
