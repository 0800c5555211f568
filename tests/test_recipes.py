"""The recipes of docs/recipes.md run as they are written: with a tiny model and tiny data, by a real shell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"<!-- recipe: (\w+) -->\n```sh\n(.*?)```", PAGE, re.S))
TALK = [{"role": "user", "content": "sea"}, {"role": "assistant", "content": "ship"}]
FILES = {
    "train.tsv": "the sea was calm\t1\nthe boy was far\t0\n" * 3,
    "dev.tsv": "the sea\t1\n",
    "train.en": "the sea\nthe ship\n",
    "train.de": "das Meer\ndas Schiff\n",
    "questions.jsonl": json.dumps({"question": "Where?", "answer": "Far."}) + "\n",
    "articles.jsonl": json.dumps({"article": "The sea was calm. " * 9, "summary": "Calm."}) + "\n",
    "article.txt": "The ship lay still.",
    "talks.jsonl": json.dumps({"messages": TALK}) + "\n",
}


def test_there_is_a_recipe_for_each_task() -> None:
    assert list(RECIPES) == ["sentiment", "translation", "questions", "summaries", "dialogue"]


@pytest.mark.parametrize("name", RECIPES)
def test_runs_as_written(name: str, tiny_gpt2: Path, tmp_path: Path, shell: Callable[..., Result]) -> None:
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    variables = {
        "LLMCLI_FINETUNE_MODEL": str(tiny_gpt2),
        "LLMCLI_FINETUNE_ITERS": "2",
        "LLMCLI_GENERATE_MAX_TOKENS": "4",
    }
    done = shell("set -e\n" + RECIPES[name], **variables)
    assert done.code == 0, done.err
    trained, answer = done.out.split("\n", 1)
    assert re.match(r"runs/\w+: 0.\d\d M parameters, 2 steps", trained)
    assert answer.strip()
