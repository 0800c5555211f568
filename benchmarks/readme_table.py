"""Writes the tables of README.md, benchmarks/README.md and docs/recipes.md from benchmarks/results/*.json.

    python benchmarks/readme_table.py           # rewrite what stands between the markers
    python benchmarks/readme_table.py --check   # exit 1 when a page does not say what the results say

`<!-- bench:kernels -->` holds the operators that have a goal, `<!-- bench:kernels all -->` every operator and the
models; `<!-- bench:peers -->` llmcli beside the best other engine, `<!-- bench:peers all -->` every engine, and charts;
`<!-- bench:training -->` every goal of training, and nanoGPT's character model; `<!-- bench:scoring -->` scoring beside
two programs; `<!-- bench:recipes -->` a line for each recipe; `<!-- bench:rows -->`, `<!-- bench:memory -->` and
`<!-- bench:loop -->` what linear_rows.py, loading_memory.py and decoding_loop.py measured; all end at
`<!-- /bench -->`. One machine has <machine>.json (`llmcli bench kernels`), <machine>.start.json (`start.py`),
<machine>.models.json (`llmcli bench`), <machine>.peers.SHAPE.json (`peers/`), <machine>.recipe.NAME.json
(`recipes.py`), and for other scripts of this folder <machine>.SCRIPT.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from llmcli.benchmarking.statistics import estimate
from llmcli.benchmarking.tables import (
    KERNEL_COLUMNS,
    SPEED_COLUMNS,
    describe,
    figure,
    kernel_row,
    markdown,
    speed_row,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    decoding_loop,
    linear_rows,
    loading_memory,
    recipes,
    training,
    training_goals,
)
from benchmarks.peers.report import SHAPES, goals_table, spread, whole_table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / recipes.PAGE)
MODELS_COMMAND = "llmcli bench --random gpt2 -t 2 -r 6 -d 0,496 --gen-tokens 32 --dtype float32,bfloat16"
PEERS_COMMAND = "python -m benchmarks.peers.run"
TRAINING_COMMAND = "python benchmarks/training.py input.txt --nanogpt nanoGPT -o benchmarks/results/"
SCORING_COMMAND = "python -m benchmarks.scoring TEXT_FILE"
SCORING_GOALS = (1.5, 60)  # times the other's speed; per cent of the matrix peak in bfloat16
SHORT = ("gpt2", "default")  # the shapes whose goals the README shows
SINGLE = {"rows": linear_rows, "memory": loading_memory, "loop": decoding_loop}  # each with a table of its own
PARTS = "|".join(("kernels", "peers", "training", "scoring", "recipes", *SINGLE))
MARKED = re.compile(rf"(<!-- bench:(?P<what>{PARTS})(?P<all> all)? -->\n).*?(<!-- /bench -->)", re.DOTALL)


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The committed results by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def kernel_table(document: dict[str, Any], *, every: bool) -> str:
    """One machine's operators as Markdown; those with a goal, or every one."""
    goals = ("goal_ratio", "goal_ceiling_pct")
    chosen = [result for result in document["results"] if every or any(result[goal] for goal in goals)]
    return markdown(KERNEL_COLUMNS, [kernel_row(result) for result in chosen])


def start_line(document: dict[str, Any]) -> str:
    """The start of `llmcli generate` in one line."""
    extra, generate, bare = (document[key] for key in ("difference_s", "generate_s", "import_torch_s"))
    return (
        f"Process start to first byte (`python benchmarks/start.py`): `llmcli generate` with the embedded model "
        f'{figure(generate)} s, `python -c "import torch"` {figure(bare)} s; difference {figure(extra["median"])} s, '
        f"goal ≤ {document['goal_difference_s']:g} s: {document['verdict']}.\n"
    )


def heading(command: str, document: dict[str, Any]) -> str:
    """What was run, when, where, and the ceilings."""
    facts = document["environment"]
    machine = " ".join(describe(facts, document["ceilings"]).replace("\nceilings", "; ceilings").split())
    load = f", load average {facts['load_average'][0]:g}" if facts["load_average"] else ""
    return f"`{command}` on {facts['date'][:10]}{load}: {machine}."


def render(results: dict[str, dict[str, Any]], *, every: bool) -> str:
    """Everything between the markers: per machine, what made the table, the table, the start."""
    parts = []
    for name, document in results.items():
        if document["schema"] != "llmcli/bench-kernels/1":
            continue
        command = f"llmcli bench kernels -t {document['environment']['threads']} --json -o benchmarks/results/"
        parts.append(f"{heading(command, document)} Rates and the ratio are medians; the interval is the ratio's.\n\n")
        parts.append(kernel_table(document, every=every) + "\n")
        machine = name.removesuffix(".json")
        if f"{machine}.start.json" in results:
            parts.append(start_line(results[f"{machine}.start.json"]) + "\n")
        if every and f"{machine}.models.json" in results:
            models = results[f"{machine}.models.json"]
            parts.append(f"{heading(MODELS_COMMAND, models)}\n\n")
            parts.append(markdown(SPEED_COLUMNS, [speed_row(result) for result in models["results"]]) + "\n")
    return "".join(parts).rstrip("\n") + "\n" if parts else ""


def named(document: dict[str, Any]) -> str:
    """What a run of `benchmarks.peers` measured."""
    trains = all(test.startswith("train") for test in document["limits"]["float32"])
    return f"{SHAPES[document['shape']]}{' in training' if trains else ''}"


def render_peers(results: dict[str, dict[str, Any]], *, every: bool) -> str:
    """The goals of each shape; with `every`, also each engine and the charts."""
    runs = {name: document for name, document in results.items() if document["schema"] == "llmcli/bench-peers/1"}
    runs = dict(sorted(runs.items(), key=lambda item: list(SHAPES).index(item[1]["shape"])))
    chosen = [document for document in runs.values() if every or document["shape"] in SHORT]
    parts = []
    for document in chosen[:1]:
        rounds = ", ".join(f"{one['rounds']} of {named(one)}" for one in chosen)
        parts.append(f"{heading(PEERS_COMMAND, document)} Medians of rounds: {rounds}.\n\n")
        parts.append(goals_table(chosen))
    for name, document in runs.items() if every else ():
        title, picture = SHAPES[document["shape"]], f"results/{name.removesuffix('.json')}.png"
        parts.append(f"\n**{title}**, {document['rounds']} rounds; {heading(PEERS_COMMAND, document)}\n\n")
        parts.append(f"{whole_table(document)}\n![{title}: every engine beside the limit]({picture})\n")
    return "".join(parts)


def render_training(results: dict[str, dict[str, Any]], *, every: bool) -> str:
    """Every goal of training on each machine that has nanoGPT's character model, and that model's runs."""
    parts = []
    for name, document in results.items():
        if document["schema"] == "llmcli/bench-training/1":
            parts.append(training_goals.table(name.removesuffix(".training.json"), results) + "\n")
            facts, load = document["environment"], ", ".join(f"{found[0]:g}" for found in document["load_averages"])
            machine = " ".join(describe(facts, []).split())
            goal = f"loss ≤ {document['goal']['val_loss']}, wall time ≤ {100 * document['goal']['wall_ratio']:.0f} %"
            where = f"on {facts['date'][:10]}, load average {load}: {machine}"
            parts.append(f"nanoGPT's character model, `{TRAINING_COMMAND}` {where}. Medians; goal: {goal}.\n\n")
            parts.append(training.table(document))
    return "".join(parts)


def render_scoring(results: dict[str, dict[str, Any]], *, every: bool) -> str:
    """llmcli beside each other program in each precision, as ratios within a round."""
    parts = []
    for document in results.values():
        if document["schema"] != "llmcli/bench-scoring/1":
            continue
        parts.append(f"{heading(SCORING_COMMAND, document)} Medians of {document['rounds']} rounds.\n\n")
        parts.append(markdown(SCORING_COLUMNS, list(scoring_rows(document))))
    return "\n".join(parts)


def render_single(script: ModuleType, results: dict[str, dict[str, Any]]) -> str:
    """What one script measured on each machine."""
    parts = []
    for document in results.values():
        if document["schema"] == f"llmcli/bench-{script.KIND}/1":
            facts, load = document["environment"], ", ".join(f"{found[0]:g}" for found in document["load_averages"])
            machine = " ".join(describe(facts, []).split())
            parts.append(f"`{script.COMMAND}` on {facts['date'][:10]}, load average {load}: {machine}. Medians.\n\n")
            parts.append(markdown(script.COLUMNS, list(script.rows(document))))
    return "\n".join(parts)


SCORING_COLUMNS = (
    "precision", "llmcli, tokens/s (range; % of the matrix peak)", "beside", "its tokens/s", "ratio",
    "nats, llmcli over it", "goal", "verdict",
)  # fmt: skip


def scoring_rows(document: dict[str, Any]) -> Iterator[list[str]]:
    """A line per precision and other program; the share of the peak has a goal in bfloat16 only."""
    times, percent = SCORING_GOALS
    for precision, found in document["results"].items():
        limit = document["limits"][precision]
        rates = {name: [document["n_tokens"] / one["seconds"] for one in runs] for name, runs in found.items()}
        mine = rates.pop("llmcli")
        for name, its in rates.items():
            ratio = estimate([a / b for a, b in zip(mine, its, strict=True)]).median
            nats = [a["nats"] / b["nats"] - 1 for a, b in zip(found["llmcli"], found[name], strict=True) if "nats" in b]
            wanted, met = f"≥ {times:g}×", ratio >= times
            if precision == "bfloat16":
                wanted, met = f"{wanted}, ≥ {percent} %", met and estimate(mine).median >= percent / 100 * limit
            difference = f"{max(nats, key=abs):+.0e}" if nats else "–"
            shares = [spread(values, estimate(values).median / limit) for values in (mine, its)]
            yield [
                precision, shares[0], name, shares[1], f"{ratio:.2f}", difference, wanted, "met" if met else "below"
            ]  # fmt: skip


def render_recipes(results: dict[str, dict[str, Any]], *, every: bool) -> str:
    """What each recipe reached."""
    return recipes.table(results)


def rewritten(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with what belongs between its markers."""
    fill = {
        "kernels": render, "peers": render_peers, "training": render_training, "scoring": render_scoring,
        "recipes": render_recipes,
    }  # fmt: skip

    def between(found: re.Match[str]) -> str:
        if script := SINGLE.get(found["what"]):
            return render_single(script, results)
        return fill[found["what"]](results, every=bool(found["all"]))

    return MARKED.sub(lambda found: found[1] + between(found) + found[4], page)


def main() -> None:
    """Rewrite or check every page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    results = load()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rewritten(before, results)
        if before != after and check:
            sys.exit(
                f"{page.relative_to(ROOT)} does not match benchmarks/results/: run python benchmarks/readme_table.py"
            )
        page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
