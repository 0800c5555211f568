"""The sentiment recipe of docs/recipes.md, run as it is written: its accuracy and the minutes that it takes.

    python -m benchmarks.sentiment train.tsv dev.tsv

SST-2 as it is usually passed around: a sentence, a tab, and 0 or 1 in each line. Takes some minutes.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks.document import ROOT, arguments, kept, shell, workshop

GOAL = {"accuracy": 0.8, "minutes": 15}


def recipe() -> str:
    """The commands between the fences of the page."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- recipe: sentiment -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def measure(train: Path, dev: Path, threads: int) -> dict[str, Any]:
    """Accuracy on every line of `dev`, and the minutes of the whole recipe."""
    with workshop(threads) as (place, variables):
        shutil.copy(train, place / "train.tsv")
        shutil.copy(dev, place / "dev.tsv")
        _, seconds = shell(recipe(), place, variables)
        figures = json.loads(shell("llmcli classify -m runs/mood --figures --json dev.jsonl", place, variables)[0])
        run = json.loads((place / "runs" / "mood" / "training.json").read_text())
    return {
        "accuracy": figures["accuracy"], "macro": figures["macro"], "n": figures["n"], "minutes": seconds / 60,
        "steps": run["step"], "recipe": run["recipe"], "goal": GOAL,
    }  # fmt: skip


if __name__ == "__main__":
    given = arguments(__doc__, "train", "dev")
    with kept("sentiment", given.output) as document:
        document |= measure(given.train, given.dev, given.threads)
