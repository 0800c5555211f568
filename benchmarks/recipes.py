"""The recipes of docs/recipes.md on real data, run as they are written: their figures and the minutes that they take.

    python -m benchmarks.recipes sentiment train.tsv dev.tsv
    python -m benchmarks.recipes translation train.en train.de test.en test.de
    python -m benchmarks.recipes questions train.jsonl test.jsonl
    python -m benchmarks.recipes summaries stories.txt
    python -m benchmarks.recipes dialogue stories.txt

SST-2 as it is usually passed around: a sentence, a tab, and 0 or 1 in each line. Multi30k: aligned lines. GSM8K:
"question" and "answer". Stories: texts with <|endoftext|> between them; a summary is the first sentence of one, to be
told from its others, and a talk is what is said in quotation marks. Each takes some minutes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.document import ROOT, arguments, kept, shell, workshop
from llmcli.benchmarking.tables import figure, markdown

Document = dict[str, Any]
PAGE = "docs/recipes.md"
HEADINGS = {"questions": "questions-and-answers"}  # of the page, where the name is not the heading
COLUMNS = ("recipe", "data", "examples", "figure", "steps", "minutes (load average)", "from `results/`")


@dataclass(frozen=True)
class Recipe:
    """The files that a recipe wants, what makes them of those given, what they are, and a goal."""

    wants: tuple[str, ...]
    data: str
    prepare: Callable[[Path], None] = lambda _: None
    goal: Document | None = None


def stories(place: Path) -> list[str]:
    """The whole stories of stories.txt, each in one line; the last one may have been cut off."""
    return [" ".join(story.split()) for story in (place / "stories.txt").read_text("utf-8").split("<|endoftext|>")][:-1]


def write(path: Path, records: list[Document]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def summaries(place: Path) -> None:
    """The first sentence of a story of four or more, and the others; every tenth story is kept aside."""
    split = [re.split(r"(?<=[.!?]) (?=[A-Z])", story) for story in stories(place)]
    records = [{"article": " ".join(rest), "summary": first} for first, *rest in split if len(rest) > 2]
    write(place / "test.jsonl", records[::10])
    write(place / "train.jsonl", [record for number, record in enumerate(records) if number % 10])


def talks(place: Path) -> None:
    """What is said in a story, by user and assistant in turn."""
    records = []
    for story in stories(place):
        said = re.findall(r'"([^"]+)"', story)
        turns = zip(["user", "assistant"] * len(said), said[: len(said) // 2 * 2], strict=False)
        records.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    write(place / "talks.jsonl", [record for record in records if record["messages"]])


RECIPES = {
    "sentiment": Recipe(("train.tsv", "dev.tsv"), "SST-2", goal={"accuracy": 0.8, "minutes": 15}),
    "translation": Recipe(("train.en", "train.de", "test.en", "test.de"), "Multi30k, English to German"),
    "questions": Recipe(("train.jsonl", "test.jsonl"), "GSM8K"),
    "summaries": Recipe(("stories.txt",), "TinyStories, the first sentence from the others", summaries),
    "dialogue": Recipe(("stories.txt",), "TinyStories, what is said in them", talks),
}


def commands(name: str) -> str:
    """The commands between the fences of the page."""
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    found = re.search(rf"<!-- recipe: {name} -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def measure(name: str, files: Sequence[Path], threads: int) -> Document:
    """Figures on every record that is kept aside, what the recipe wrote at its end, and its minutes."""
    recipe = RECIPES[name]
    with workshop(threads) as (place, variables):
        for wanted, file in zip(recipe.wants, files, strict=True):
            shutil.copy(file, place / wanted)
        recipe.prepare(place)
        formats = {f"LLMCLI_{command}_FORMAT": "json" for command in ("EVALUATE", "CLASSIFY")}
        out, seconds = shell(commands(name), place, variables | formats)
        _, rest = out.split("\n", 1)
        found, end = json.JSONDecoder().raw_decode(rest) if rest.startswith("{") else ({}, 0)
        (run,) = place.glob("runs/*")
        settings = json.loads((run / "training.json").read_text())
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        learned = re.search(r"--data (\S+)", commands(name))
        assert learned is not None
        examples = len((place / learned[1]).read_text().splitlines())
    figures = found.get("metrics") or {key: found[key] for key in ("accuracy", "macro") if key in found}
    return {
        "name": name, "data": recipe.data, "examples": examples, "figures": figures, "n": found.get("n"),
        "validation": [line for line in log if "val_loss" in line][-1], "written": rest[end:].strip(),
        "minutes": seconds / 60, "steps": settings["step"], "recipe": settings["recipe"], "goal": recipe.goal,
    }  # fmt: skip


def reached(document: Document) -> str:
    """The figure of a recipe in words."""
    found, n = document["figures"], document["n"]
    if "accuracy" in found:
        return f"accuracy {100 * found['accuracy']:.1f} % of {n:,}"
    if "bleu" in found:
        return f"BLEU {found['bleu']['score']:.1f} on {n:,}"
    if "rouge" in found:
        scores = ", ".join(f"{name.removeprefix('rouge')} {score:.3f}" for name, score in found["rouge"].items())
        return f"ROUGE {scores} on {n:,}"
    if "exact" in found:
        return f"{found['exact']['right']} of {n:,} right"
    return f"{document['validation']['val_bits_per_byte']:.3f} bits per byte of the answers kept aside"


def table(results: dict[str, Document]) -> str:
    """A line for each recipe that was measured, in the order of the page."""
    lines = []
    for name in RECIPES:
        for file, document in results.items():
            if document["schema"] == "llmcli/bench-recipe/1" and document["name"] == name:
                loads = " to ".join(figure(load[0]) for load in document["load_averages"])
                lines.append([
                    f"[{name}](#{HEADINGS.get(name, name)})", document["data"], f"{document['examples']:,}",
                    reached(document), f"{document['steps']:,}", f"{figure(document['minutes'])} ({loads})",
                    f"[{file.removesuffix('.json')}](../benchmarks/results/{file})",
                ])  # fmt: skip
    return markdown(COLUMNS, lines) if lines else ""


if __name__ == "__main__":
    given = arguments(__doc__, "name", many="files")
    name = str(given.name)
    if name not in RECIPES or len(given.files) != len(RECIPES[name].wants):
        sys.exit(f"expected one of {', '.join(RECIPES)} and its files; see python -m benchmarks.recipes --help")
    with kept(f"recipe.{name}", given.output) as document:
        document |= measure(name, given.files, given.threads)
