"""Every goal of training on one page: what was reached, and the file of results/ that says so.

A goal whose file is missing stands with the command that makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks import training
from benchmarks.peers import report
from llmcli.benchmarking.tables import figure, markdown

Document = dict[str, Any]
COLUMNS = ("what", "precision", "beside", "goal", "reached", "verdict", "from `results/`")
OPERATORS = ("attention", "linear_cross_entropy")
COMMANDS = {
    "training": "python benchmarks/training.py input.txt --nanogpt nanoGPT",
    "peers.gpt2.train": "python -m benchmarks.peers.run --shapes gpt2 --kinds train",
    "kernels": "llmcli bench kernels",
    "loss-memory": "python -m benchmarks.loss_memory",
    "recipe.sentiment": "python -m benchmarks.recipes sentiment train.tsv dev.tsv",
    "embedded-model": "python -m benchmarks.embedded_model BOOKS",
}


def met(reached: bool) -> str:
    """The verdict in a word."""
    return "met" if reached else "missed"


def character_rows(document: Document) -> Iterator[list[str]]:
    """Loss, and time as a share of nanoGPT's; the rows of `training.figures`."""
    goal = document["goal"]
    for row in training.figures(document):
        if row.ratio is not None:
            wanted = f"loss ≤ {goal['val_loss']}, ≤ {100 * goal['wall_ratio']:.0f} % of its time"
            reached = f"{row.loss:.3f}, {100 * row.ratio:.0f} %"
            yield ["nanoGPT's character model", row.precision, training.PEER, wanted, reached, met(row.met)]


def step_rows(document: Document) -> Iterator[list[str]]:
    """Tokens per second as a multiple of other trainers'."""
    for line in report.goal_rows(document):
        found = dict(zip(report.GOALS_COLUMNS, line, strict=True))
        if found["test"].startswith("training"):
            speed = f"{found['ratio']}× ({found['llmcli']} tokens/s beside {found['its median']})"
            name = f"{found['model']}, {found['test']}"
            verdict = {"below": "missed"}.get(found["verdict"], found["verdict"])
            yield [name, found["precision"], found["best other"], found["goal"], speed, verdict]


def operator_rows(document: Document) -> Iterator[list[str]]:
    """Forward and backward of the operators that have a goal."""
    for row in document["results"]:
        if row["op"] in OPERATORS and row["variant"] == "forward + backward" and row["goal_ratio"]:
            name, ratio = f"{row['op']}, {row['variant']}, {row['shape']}", row["ratio"]
            reached = f"{figure(ratio['median'])}× ({figure(ratio['ci_low'])}–{figure(ratio['ci_high'])})"
            verdict = {"below": "missed"}.get(row["verdict"], row["verdict"])
            yield [name, row["dtype"], "torch", f"≥ {row['goal_ratio']:g}×", reached, verdict]


def memory_rows(document: Document) -> Iterator[list[str]]:
    """Peak memory of the fused loss as a share of torch's."""
    for precision, found in document["peak_bytes"].items():
        ours, theirs = median(found["llmcli"]), median(found["torch"])
        reached = f"{100 * ours / theirs:.0f} % ({figure(ours / 2**20)} of {figure(theirs / 2**20)} MiB)"
        goal = f"≤ {100 * document['goal']:.0f} % of the peak memory"
        verdict = met(ours <= document["goal"] * theirs)
        yield ["vocabulary projection and cross-entropy", precision, "torch", goal, reached, verdict]


def sentiment_rows(document: Document) -> Iterator[list[str]]:
    """The recipe of docs/recipes.md as it is written."""
    goal, accuracy, minutes = document["goal"], document["figures"]["accuracy"], document["minutes"]
    loads = " to ".join(figure(load[0]) for load in document["load_averages"])
    reached = f"{100 * accuracy:.1f} % of {document['n']}, {figure(minutes)} minutes (load average {loads})"
    wanted = f"≥ {100 * goal['accuracy']:.0f} %, under {goal['minutes']} minutes"
    verdict = met(accuracy >= goal["accuracy"] and minutes < goal["minutes"])
    yield ["SST-2, development set", document["recipe"]["dtype"], "–", wanted, reached, verdict]


def version_rows(document: Document) -> Iterator[list[str]]:
    """Bits per byte of the held-out text."""
    now, before = (document["versions"][name]["bits_per_byte"] for name in ("now", "before"))
    reached = f"{now:.3f} bits per byte, {before:.3f} before"
    yield ["embedded model", "bfloat16", "its version before", "fewer bits per byte", reached, met(now < before)]


PARTS = {
    "training": character_rows,
    "peers.gpt2.train": step_rows,
    "kernels": operator_rows,
    "loss-memory": memory_rows,
    "recipe.sentiment": sentiment_rows,
    "embedded-model": version_rows,
}


def table(machine: str, results: dict[str, Document]) -> str:
    """Every goal as it stands on one machine."""
    lines = []
    for kind, rows in PARTS.items():
        file = f"{machine}.json" if kind == "kernels" else f"{machine}.{kind}.json"
        if file in results:
            source = file.removeprefix(f"{machine}.").removesuffix(".json") if kind != "kernels" else kind
            lines += [[*row, f"[{source}](results/{file})"] for row in rows(results[file])]
        else:
            lines.append([f"`{COMMANDS[kind]}`", *["–"] * 4, "not measured", "–"])
    return markdown(COLUMNS, lines)
