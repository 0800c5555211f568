"""Results as rows of cells: the same numbers for a terminal, Markdown, CSV and github-action-benchmark."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

SPEED_COLUMNS = ("model", "test", "dtype", "threads", "batch", "tokens/s", "95 % interval", "% of ceiling")
KERNEL_COLUMNS = (
    "operator", "variant", "shape", "dtype", "unit", "llmcli", "torch", "× torch", "95 % interval", "% of ceiling",
    "goal", "verdict",
)  # fmt: skip
VERDICT_COLUMNS = (
    "test", "A ms", "B ms", "B's speed", "interval", "rounds", "A against itself", "finds losses over", "verdict",
)  # fmt: skip

NUMBERS = frozenset(
    {"threads", "batch", "tokens/s", "95 % interval", "% of ceiling", "llmcli", "torch", "× torch"}
)  # right-aligned


def figure(value: float | None) -> str:
    """Three significant digits, thousands separated; a dash for None."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """`low–high`, or a dash when there is none."""
    return "–" if low is None or high is None else f"{figure(low)}–{figure(high)}"


def speed_row(result: Document) -> list[str]:
    """The cells of one prefill or decode test."""
    return [
        result["model"],
        result["test"],
        result["dtype"],
        str(result["n_threads"]),
        str(result["n_batch"]),
        figure(result["median_ts"]),
        interval(result["ci_low_ts"], result["ci_high_ts"]),
        figure(result["roofline_pct"]),
    ]


def kernel_row(result: Document) -> list[str]:
    """The cells of one operator."""
    ratio = result["ratio"]
    goals = []
    if result["goal_ratio"] is not None:
        goals.append(f"≥ {result['goal_ratio']:g}×")
    if result["goal_ceiling_pct"] is not None:
        goals.append(f"≥ {result['goal_ceiling_pct']:g} %")
    return [
        result["op"],
        result["variant"],
        result["shape"],
        result["dtype"],
        result["unit"],
        figure(result["llmcli"]["median"]),
        figure(result["torch"]["median"]),
        figure(ratio["median"]),
        interval(ratio["ci_low"], ratio["ci_high"]),
        figure(result["ceiling_pct"]["median"]),
        ", ".join(goals) or "–",
        result["verdict"] or "–",
    ]


def verdict_row(result: Document) -> list[str]:
    """The cells of one test of a live comparison; the noise stands before the verdict."""
    noise, smallest = result["noise"], result["smallest_slowdown_pct"]

    def span(low: float | None, high: float | None) -> str:
        return "–" if low is None or high is None else f"{low:.3f}–{high:.3f}"

    return [
        result["test"],
        figure(result["first_ns"] / 1e6),
        figure(result["second_ns"] / 1e6),
        f"{result['ratio']:.3f}",
        span(result["low"], result["high"]),
        str(result["rounds"]),
        span(noise["low"], noise["high"]),
        "–" if smallest is None else f"{smallest:.1f} %",
        result["verdict"],
    ]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def flat(document: Document, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level of `a.b` keys; lists joined by semicolons."""
    cells: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            cells |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            cells[prefix + key] = ";".join(str(item) for item in value)
        else:
            cells[prefix + key] = value
    return cells


def to_csv(documents: Sequence[Document]) -> str:
    """One line per result under a header; None is an empty cell."""
    flattened = [flat(document) for document in documents]
    columns = dict.fromkeys(key for cells in flattened for key in cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue()


def github_benchmark(results: Sequence[Document]) -> str:
    """The `customBiggerIsBetter` document of github-action-benchmark: [{name, unit, value, range}]."""
    entries = []
    for result in results:
        if "low" in result:
            name, unit, value, low, high = result["test"], "× A", result["ratio"], result["low"], result["high"]
        elif "median_ts" in result:
            name = " ".join(
                [result["model"], result["test"], result["dtype"], f"t{result['n_threads']}", f"b{result['n_batch']}"]
            )
            unit, value, low, high = "tokens/s", result["median_ts"], result["ci_low_ts"], result["ci_high_ts"]
        else:
            name = " ".join(result[key] for key in ("op", "variant", "shape", "dtype"))
            ours = result["llmcli"]
            unit, value, low, high = result["unit"], ours["median"], ours["ci_low"], ours["ci_high"]
        entry = {"name": name, "unit": unit, "value": value}
        if low is not None and high is not None:
            entry["range"] = f"{low}–{high}"
        entries.append(entry)
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def describe(environment: Document, ceilings: Sequence[Document]) -> str:
    """The machine, the software and the ceilings, in one line each."""
    machine = [environment["cpu"] or environment["machine"], f"{environment['cores']} cores"]
    if environment["isa"]:
        machine.append(f"kernels for {environment['isa']}")
    software = [f"llmcli {environment['llmcli']}", f"torch {environment['torch']}"]
    limits = []
    for ceiling in ceilings:
        what = f"{ceiling['kind']} {ceiling['dtype']}" if ceiling["dtype"] else ceiling["kind"]
        size = f" of {ceiling['buffer_bytes'] >> 20} MiB" if ceiling["buffer_bytes"] else ""
        threads = f" with {ceiling['n_threads']} threads"
        limits.append(f"{what}{size}{threads} {figure(ceiling['value'])} {ceiling['unit']}")
    lines = [", ".join(machine + software)] + (["ceilings: " + "; ".join(limits)] if limits else [])
    return "\n".join(lines) + "\n"


def start_verdict(document: Document) -> str:
    """Whether the difference of the start times stays under its goal: "met", "above" or "inconclusive"."""
    extra, goal = document["difference_s"], document["goal_difference_s"]
    if extra["ci_low"] is None:
        return "inconclusive"
    if extra["ci_high"] <= goal:
        return "met"
    return "above" if extra["ci_low"] > goal else "inconclusive"
