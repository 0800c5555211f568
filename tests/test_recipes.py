"""The recipes of docs/recipes.md run as they are written: with a tiny model and tiny data, by a real shell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipes
from tests.test_benchmarks import DOCUMENT

STORIES = """Tom had a boat. It was red. He was glad. He said, "Look!" The sea was calm. "Where?" asked Ann.
<|endoftext|>
Ann had a dog. It ran far. Nobody spoke. It came home.
<|endoftext|>
Sam had a cat. It ran fa"""
FILES = {
    "train.tsv": "the sea was calm\t1\nthe boy was far\t0\n" * 3,
    "dev.tsv": "the sea\t1\nthe boy\t0\n",
    "train.en": "the sea\nthe\tship\n",
    "train.de": "das Meer\ndas Schiff\t\n",
    "test.en": "the sea\n",
    "test.de": "das Meer\n",
    "train.jsonl": (json.dumps({"question": "Where?", "answer": "Far.\n#### 7"}) + "\n") * 2,
    "test.jsonl": json.dumps({"question": "Who?", "answer": "#### 8"}) + "\n",
    "stories.txt": STORIES + STORIES,
}
FIGURES = {
    "sentiment": "accuracy",
    "translation": "BLEU",
    "questions": "0 of 1 right",
    "summaries": "ROUGE 1 ",
    "dialogue": "bits per byte",
}


def test_there_is_a_recipe_for_each_task() -> None:
    page = (recipes.ROOT / recipes.PAGE).read_text()
    assert re.findall(r"<!-- recipe: (\w+) -->", page) == list(recipes.RECIPES) == list(FIGURES)
    for name in recipes.RECIPES:
        title = recipes.HEADINGS.get(name, name).replace("-", " ").capitalize()
        assert f"\n## {title}\n" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_runs_as_written(name: str, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = f"FINETUNE_MODEL={tiny_gpt2} FINETUNE_ITERS=2 GENERATE_MAX_TOKENS=4 EVALUATE_MAX_TOKENS=4".split()
    short = "".join(f"export LLMCLI_{variable}\n" for variable in tiny) + recipes.commands(name)
    monkeypatch.setattr(recipes, "commands", lambda _: short)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    found = recipes.measure(name, [tmp_path / file for file in recipes.RECIPES[name].wants], threads=1)
    assert (found["steps"], 0 < found["minutes"] < 2) == (2, True)
    assert found["written"]
    document: dict[str, Any] = DOCUMENT | found | {"schema": "llmcli/bench-recipe/1", "load_averages": [[1.0], [2.0]]}
    row = recipes.table({"m.recipe.json": document}).splitlines()[2]
    assert f"| [{name}](#" in row
    assert FIGURES[name] in row


def test_talks_and_summaries_of_stories(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text(STORIES)
    recipes.talks(tmp_path)
    (talk,) = map(json.loads, (tmp_path / "talks.jsonl").read_text().splitlines())
    assert talk["messages"] == [{"role": "user", "content": "Look!"}, {"role": "assistant", "content": "Where?"}]
    recipes.summaries(tmp_path)
    (kept_aside,) = map(json.loads, (tmp_path / "test.jsonl").read_text().splitlines())
    assert (kept_aside["summary"], kept_aside["article"][-4:]) == ("Tom had a boat.", "Ann.")
    (learned,) = map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())
    assert (learned["summary"], learned["article"][:7]) == ("Ann had a dog.", "It ran ")
