"""The document of a run as a table of every engine, as llmcli beside the best of the others, and as bars.

Every figure is the median over the rounds. A ratio is taken within each round, and its median is shown; beside it the
ratio of llmcli's median to the fastest single round of any of the others. A share is of the limit that was measured
around the same sample; documents without such limits have that of the whole run, its best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmcli.benchmarking.statistics import estimate
from llmcli.benchmarking.tables import figure, markdown

Document = dict[str, Any]
OURS = "llmcli"
NAMES = {"llama_cpp": "llama.cpp", "ctranslate2": "CTranslate2", "openvino": "OpenVINO GenAI", "llm_c": "llm.c"}
TITLES = {
    "pp512": "prefill 512",
    "tg32 @ d32": "decode at 32",
    "tg32 @ d880": "decode at 880",
    "tg32 @ d32 b8": "decode at 32, batch 8",
    "score 2x512": "scoring 2 × 512",
    "score 4x512": "scoring 4 × 512",  # of older documents
    "train 4x64": "training 4 × 64",
    "train 4x1024": "training 4 × 1,024",
}
SHAPES = {
    "gpt2": "GPT-2 124M",
    "gpt2-medium": "GPT-2 355M",
    "gpt2-large": "GPT-2 774M",
    "gpt2-xl": "GPT-2 1.5B",
    "llama": "Llama 125M",
    "default": "embedded model",
}
FIRST_TOKEN_EXTRA_S = 0.4  # over importing torch

# At least this many times the best of the others, and this percentage of the limit, by test and precision.
GOALS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("tg32 @ d32", "float32"): (1.1, 90),
    ("tg32 @ d32", "bfloat16"): (1.6, 90),
    ("tg32 @ d32", "int8"): (1.4, 85),
    ("tg32 @ d32", "int4"): (1.2, 80),
    ("tg32 @ d880", "float32"): (None, 85),
    ("tg32 @ d880", "bfloat16"): (None, 85),
    ("tg32 @ d880", "int8"): (None, 85),
    ("tg32 @ d880", "int4"): (None, 85),
    ("tg32 @ d32 b8", "bfloat16"): (1.5, 70),
    ("pp512", "float32"): (1.3, 80),
    ("pp512", "bfloat16"): (2.5, 65),
    ("pp512", "int8"): (3.0, None),
    ("score 2x512", "bfloat16"): (1.5, 60),
    ("score 4x512", "bfloat16"): (1.5, 60),
    ("train 4x64", "float32"): (1.4, None),
    ("train 4x64", "bfloat16"): (2.0, None),
    ("train 4x1024", "float32"): (1.4, None),
    ("train 4x1024", "bfloat16"): (3.0, None),
}
# At least this many times a certain other.
RIVALS = {(test, "float32", "llm_c"): 1.5 for test in ("train 4x64", "train 4x1024")}
DEFAULT_GOALS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("tg32 @ d32", precision): (1.3, None) for precision in ("float32", "bfloat16", "int8", "int4")
}
GOALS_COLUMNS = (
    "model", "test", "precision", "llmcli", "best other", "its median", "ratio", "ratio to its best round", "limit",
    "% of limit", "% of the run's best limit", "goal", "verdict",
)  # fmt: skip


def label(row: Document) -> str:
    """`llama.cpp q8_0, flash attention`."""
    return f"{NAMES.get(row['engine'], row['engine'])} {row['variant']}"


def speeds(row: Document, test: str) -> dict[int, float]:
    """Tokens per second of the rounds that a contestant finished."""
    return {one["round"]: one["speeds"][test] for one in row["rounds"] if test in one["speeds"]}


def median(values: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return estimate(values).median if values else None


def limits(row: Document, test: str, document: Document) -> list[float]:
    """Tokens per second that the machine allowed in each finished round."""
    best = document["limits"][row["precision"]][test]
    return [float(one.get("limits", {}).get(test, best)) for one in row["rounds"] if test in one["speeds"]]


def share(row: Document, test: str, document: Document) -> float:
    """The median over the rounds of the speed over the limit."""
    pairs = zip(speeds(row, test).values(), limits(row, test, document), strict=True)
    return estimate([speed / limit for speed, limit in pairs]).median


def whole_table(document: Document) -> str:
    """Every contestant: speeds with the slowest and fastest round and the share of the limit, start, memory."""
    tests = list(document["limits"]["float32"])
    columns = ["engine", "precision", *(f"{TITLES[test]}, tokens/s (range; % of limit)" for test in tests)]
    lines = []
    for row in document["contestants"]:
        cells = [label(row), row["precision"]]
        for test in tests:
            values = list(speeds(row, test).values())
            cells.append(spread(values, share(row, test, document)) if values else "–")
        first = median([one["first_token_s"] for one in row["rounds"] if one["first_token_s"] is not None])
        memory = median([one["rss"] / 2**20 for one in row["rounds"]])
        lines.append([*cells, figure(first), figure(memory), remark(row, document)])
    for precision in dict.fromkeys(row["precision"] for row in document["contestants"]):
        limit = document["limits"][precision]
        lines.append([f"best limit of {precision}", precision, *(figure(limit[test]) for test in tests), "–", "–", ""])
    return markdown([*columns, "first token, s", "memory, MiB", "remark"], lines)


def spread(values: list[float], part: float) -> str:
    """`44.1 (39.0–46.2; 76 %)`."""
    return f"{figure(estimate(values).median)} ({figure(min(values))}–{figure(max(values))}; {100 * part:.0f} %)"


def remark(row: Document, document: Document) -> str:
    """What is wrong with a row: why it ended, or that its first tokens in float32 are not those of llmcli."""
    if row["error"]:
        return f"after {len(row['rounds'])} rounds: {row['error']}" if row["rounds"] else row["error"]
    if row["precision"] != "float32":
        return ""
    ours = next((one for one in document["contestants"] if label(one) == f"{OURS} float32"), row)
    pairs = list(zip_rounds(first_tokens(ours), first_tokens(row)))
    differ = sum(a != b for a, b in pairs)
    return f"another first token in {differ} of {len(pairs)} rounds" if differ else ""


def first_tokens(row: Document) -> dict[int, int]:
    """What a contestant wrote first, by round."""
    return {one["round"]: one["first_token"] for one in row["rounds"] if one["first_token"] is not None}


def zip_rounds(a: dict[int, Any], b: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    """The values of the rounds that both have."""
    return ((a[index], b[index]) for index in sorted(a.keys() & b.keys()))


def goal_row(
    document: Document, test: str, precision: str, ratio: float | None, percent: float | None, rival: str | None = None
) -> list[str]:
    """llmcli beside the best other engine, or beside a certain one, in one test and precision, against a goal."""
    rows = [row for row in document["contestants"] if row["precision"] == precision and speeds(row, test)]
    ours = next((row for row in rows if row["engine"] == OURS), None)
    others = [row for row in rows if row["engine"] != OURS and (rival is None or row["engine"] == rival)]
    best_limit = document["limits"][precision][test]
    name = [SHAPES[document["shape"]], TITLES[test], precision]
    wanted = ((ratio, "×"), (percent, " %"))
    goal = ", ".join(f"≥ {value:g}{unit}" for value, unit in wanted if value is not None)
    if ours is None or not others:
        return [*name, *["–"] * 5, figure(best_limit), "–", "–", goal, "not measured"]
    mine, best = middle(ours, test), max(others, key=lambda row: middle(row, test))
    paired = [a / b for a, b in zip_rounds(speeds(ours, test), speeds(best, test))]
    typical = estimate(paired).median if paired else None
    record = mine / max(max(speeds(row, test).values()) for row in others)
    reached = ratio is None or (typical is not None and min(typical, record) >= ratio)
    reaches = 100 * share(ours, test, document)
    verdict = "met" if reached and (percent is None or reaches >= percent) else "below"
    beside = [label(best), figure(middle(best, test)), figure(typical), figure(record)]
    limit = figure(estimate(limits(ours, test, document)).median)
    return [*name, figure(mine), *beside, limit, figure(reaches), figure(100 * mine / best_limit), goal, verdict]


def middle(row: Document, test: str) -> float:
    """The median of a contestant's speeds."""
    return estimate(list(speeds(row, test).values())).median


def goal_rows(document: Document) -> Iterator[list[str]]:
    """A line of GOALS_COLUMNS for every goal that a document measured."""
    goals = DEFAULT_GOALS if document["shape"] == "default" else GOALS
    for (test, precision), (ratio, percent) in goals.items():
        if test in document["limits"][precision]:
            yield goal_row(document, test, precision, ratio, percent)
    for (test, precision, rival), ratio in RIVALS.items():
        if any(row["engine"] == rival and speeds(row, test) for row in document["contestants"]):
            yield goal_row(document, test, precision, ratio, None, rival)


def goals_table(documents: Sequence[Document]) -> str:
    """Every goal of these shapes, and the time to the first token."""
    lines, starts = [], []
    for document in documents:
        lines += goal_rows(document)
        if any(not test.startswith("train") for test in document["limits"]["float32"]):
            starts.append(start_line(document))
    return markdown(GOALS_COLUMNS, lines) + "\n" + " ".join(starts) + "\n"


def start_line(document: Document) -> str:
    """Time to first token of llmcli, beside importing torch and beside the fastest other engine."""
    name = SHAPES[document["shape"]]
    firsts = {
        label(row): estimate(seconds).median
        for row in document["contestants"]
        if (seconds := [one["first_token_s"] for one in row["rounds"] if one["first_token_s"] is not None])
    }
    ours = {key: value for key, value in firsts.items() if key.startswith(f"{OURS} ")}
    others = {key: value for key, value in firsts.items() if key not in ours}
    bare = estimate(document["import_torch_s"]).median
    if not ours:
        return f"{name}: time to first token of llmcli not measured."
    verdict = "met" if max(ours.values()) <= bare + FIRST_TOKEN_EXTRA_S else "above"
    beside = f"; fastest other {min(others, key=others.__getitem__)} {figure(min(others.values()))} s" if others else ""
    figures = ", ".join(f"{key.removeprefix(OURS + ' ')} {figure(value)} s" for key, value in ours.items())
    return (
        f"{name}, a whole process to its first token: {figures}; importing torch {figure(bare)} s, goal ≤ "
        f"{FIRST_TOKEN_EXTRA_S:g} s more: {verdict}{beside}."
    )


def chart(document: Document, path: Path) -> None:
    """Bars of every contestant in every test, by precision, each with a line at its limit. Needs matplotlib."""
    from matplotlib.figure import Figure

    tests = list(document["limits"]["float32"])
    rows = sorted(document["contestants"], key=lambda row: list(document["limits"]).index(row["precision"]))
    engines = list(dict.fromkeys(row["engine"] for row in document["contestants"]))
    picture = Figure(figsize=(3.6 * len(tests), 0.28 * len(rows) + 1.6), layout="constrained")
    for place, (test, axes) in enumerate(zip(tests, picture.subplots(1, len(tests), squeeze=False)[0], strict=True)):
        for index, row in enumerate(rows):
            values, best = speeds(row, test), document["limits"][row["precision"]][test]
            length = middle(row, test) if values else 0.0
            limit = estimate(limits(row, test, document) or [best]).median
            axes.barh(index, length, color=f"C{engines.index(row['engine'])}", height=0.8)
            axes.plot([limit, limit], [index - 0.5, index + 0.5], color="black", linewidth=1.5)
            axes.text(length, index, f" {figure(length)}" if values else " –", va="center", fontsize=7)
        axes.set_yticks(range(len(rows)), [label(row) for row in rows] if place == 0 else [""] * len(rows), fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(f"{TITLES[test]}, tokens/s", fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
    name = SHAPES[document["shape"]]
    picture.suptitle(f"{name}, medians of {document['rounds']} rounds; black: the machine's limit", fontsize=10)
    picture.savefig(path, dpi=110)
