"""Pictures of the documents that commands write as JSON: which text is hard, which became worse, how noisy a run was.

Knows JSON fields, characters and matplotlib; knows neither models nor terminals.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.document import parse_document
from llmcli.errors import InputError, ModelError, ResourceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 40  # bars of one picture


@dataclass(frozen=True)
class Bars:
    """Named values, the first at the top; `marks` are values at which a line stands."""

    title: str
    unit: str
    rows: Sequence[tuple[str, float]]
    marks: Sequence[tuple[str, float]] = ()


def read(path: str) -> dict[str, Any] | None:
    """The document in a file of JSON; None for what is no document, such as a run's directory or its log.

    Raises InputError for a document that has no picture, ModelError for one without its fields.
    """
    try:
        found = parse_document(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not found:
        return None
    if str(found["schema"]) not in KINDS:
        raise InputError(f"{path}: expected a document of {', '.join(KINDS)}, got {found['schema']!r}")
    try:
        shown = bars(found)
        times = [time for panel in panels(found) for _, _, times, median in panel.sides for time in (*times, median)]
        if not all(map(math.isfinite, [*(value for _, value in (*shown.rows, *shown.marks)), *times])):
            raise ValueError("a figure that is not finite")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{path}: expected the fields of {found['schema']}, got others ({error!r})") from None
    return found


def bars(document: Mapping[str, Any]) -> Bars:
    """What a document that was `read` shows."""
    return KINDS[document["schema"]](document)


def _perplexity(document: Mapping[str, Any]) -> Bars:
    rows = [(str(row["name"]), float(row["bits_per_byte"])) for row in document["documents"] if row["n_tokens"]]
    marks = [("all", float(document["bits_per_byte"]))]
    title = f"{document['model']}, {document['protocol']['name']}: ppl {document['ppl']:.4g}"
    return Bars(title, "bits per byte", sorted(rows, key=lambda row: -row[1]), marks)


def _increase(document: Mapping[str, Any]) -> Bars:
    rows = [(str(row["name"]), float(row["increase_pct"])) for row in document["documents"]]
    marks = [(name, float(document["ci"][name])) for name in ("low", "high") if document["ci"][name] is not None]
    if document["max_increase_pct"] is not None:
        marks.append(("most", float(document["max_increase_pct"])))
    title = f"{document['old']} to {document['new']}: {document['increase_pct']:+.3g} %"
    return Bars(title, "increase of the perplexity, %", sorted(rows, key=lambda row: -row[1]), marks)


def _speed(document: Mapping[str, Any]) -> Bars:
    if "sides" not in document:  # of stored results
        ratios = [(str(result["test"]), float(result["ratio"])) for result in document["results"]]
        return Bars(f"B beside A: {document['verdict']}", "speed of B over A's", ratios)
    rows = [
        (f"{result['test']} {side}", float(result[f"{name}_ns"]) / 1e6)
        for result in document["results"]
        for side, name in (("A", "first"), ("B", "second"))
    ]
    return Bars(f"{' and '.join(str(side['side']) for side in document['sides'])}: {document['verdict']}", "ms", rows)


@dataclass(frozen=True)
class Panel:
    """The samples of one test: of each side its name, rounds, milliseconds, and their median."""

    title: str
    sides: Sequence[tuple[str, Sequence[int], Sequence[float], float]]


def panels(document: Mapping[str, Any]) -> list[Panel]:
    """The samples that a document holds, test by test."""
    found = []
    for result in document.get("results", []):
        if "samples_ns" not in result:
            continue
        sides = []
        for name, key, rounds in zip("AB", ("first_ns", "second_ns"), result["samples_ns"], strict=True):
            points = [(n, float(sample) / 1e6) for n, pair in enumerate(rounds, 1) for sample in pair]
            sides.append((name, [n for n, _ in points], [ms for _, ms in points], float(result[key]) / 1e6))
        span = "" if result["low"] is None else f", {result['low']:.3f} to {result['high']:.3f}"
        title = f"{result['test']}: B at {result['ratio']:.3f} of A's speed{span}, {result['verdict']}"
        found.append(Panel(title, sides))
    return found


KINDS: dict[str, Callable[[Mapping[str, Any]], Bars]] = {
    "llmcli/perplexity/1": _perplexity,
    "llmcli/compare-perplexity/1": _increase,
    "llmcli/bench-compare/1": _speed,
}


def as_text(shown: Bars, width: int) -> str:
    """Bars of characters, at most `width` to a line; those below zero are light."""
    rows = shown.rows[:MOST]
    names = min(max((len(name) for name, _ in rows), default=0), width // 3)
    top = max((abs(value) for _, value in rows), default=0.0) or 1.0
    lines = [f"{shown.title} ({shown.unit})"]
    for name, value in rows:
        figure = f"{value:10.4g}"
        length = round(abs(value) / top * (width - names - len(figure) - 2))
        lines.append(f"{name[:names]:<{names}} {figure} {('█' if value >= 0 else '░') * length}".rstrip())
    if len(shown.rows) > MOST:
        lines.append(f"and {len(shown.rows) - MOST} more")
    lines += [f"{name:<{names}} {value:10.4g}" for name, value in shown.marks]
    return "\n".join(lines) + "\n"


def picture(document: Mapping[str, Any], kind: str) -> bytes:
    """A document that was `read` as "png", "svg" or "pdf". Raises ResourceError where matplotlib is not installed."""
    shown = bars(document)
    samples = panels(document)
    rows = min(len(shown.rows), MOST)
    figure = canvas(8, max(3.0, 3.0 * len(samples), 1.5 + 0.25 * rows))
    if samples:
        for axes, panel in zip(figure.subplots(len(samples), squeeze=False)[:, 0], samples, strict=True):
            _draw_samples(axes, panel)
        figure.suptitle(shown.title, fontsize="medium")
    else:
        _draw_bars(figure.add_subplot(), shown)
    return written(figure, kind)


def _draw_bars(axes: Axes, shown: Bars) -> None:
    rows = list(reversed(shown.rows[:MOST]))
    axes.barh(range(len(rows)), [value for _, value in rows], color=["C0" if value >= 0 else "C2" for _, value in rows])
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for number, (name, value) in enumerate(shown.marks):
        axes.axvline(value, color=f"C{number + 1}", linestyle="--", linewidth=1, label=f"{name} {value:.4g}")
    axes.set_xlabel(shown.unit)
    more = f", the first {MOST} of {len(shown.rows)}" if len(shown.rows) > MOST else ""
    axes.set_title(shown.title + more, fontsize="medium")
    if shown.marks:
        axes.legend()
    axes.grid(alpha=0.3, axis="x")


def _draw_samples(axes: Axes, panel: Panel) -> None:
    for number, (name, rounds, times, median) in enumerate(panel.sides):
        axes.plot(rounds, times, ".", color=f"C{number}", markersize=4, label=name)
        axes.axhline(median, color=f"C{number}", linewidth=1)
    axes.set_title(panel.title, fontsize="small")
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3)
    axes.legend()


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches. Raises ResourceError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ResourceError(
            "expected matplotlib to draw a picture, got an installation without it: pip install 'llmcli[plot]'"
        ) from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def written(figure: Figure, kind: str) -> bytes:
    """A figure as "png", "svg" or "pdf"."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()
