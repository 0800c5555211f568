"""Curves of training runs: read from their logs, smoothed, drawn as text or as a picture.

Knows JSONL logs and characters; knows neither models nor terminals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from llmcli.errors import InputError, ModelError
from llmcli.pictures import canvas, written

LOG = "log.jsonl"  # in a run's directory
METRICS = ("loss", "val_loss")
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Curve:
    """One figure of one run, by step."""

    run: str
    metric: str
    steps: Sequence[int]
    values: Sequence[float]

    @property
    def name(self) -> str:
        """`RUN metric`."""
        return f"{self.run} {self.metric}"


def read(run: str, metrics: Sequence[str] = METRICS) -> list[Curve]:
    """The curves of a run's directory or log. Where steps begin anew, as after --resume, the later ones count.

    Raises ModelError for a log that is missing or malformed, InputError where it has none of the metrics.
    """
    path = Path(run) / LOG if Path(run).is_dir() else Path(run)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; expected a run's directory or its --log") from None
    points: dict[str, dict[int, float]] = {metric: {} for metric in metrics}
    there: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):  # a run that was killed, or is still writing
                break
            raise ModelError(f'{path}:{number}: expected a JSON object with "step", got {line[:60]!r}') from None
        for metric, value in record.items():
            if metric == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            there.add(metric)
            if metric in points:
                known = points[metric]
                for later in [one for one in known if one >= step]:
                    del known[later]
                known[step] = float(value)
    found = [Curve(run, metric, list(values), list(values.values())) for metric, values in points.items() if values]
    if not found:
        raise InputError(f"{path}: expected figures of {', '.join(metrics)}, got {', '.join(sorted(there)) or 'none'}")
    return found


def smooth(curve: Curve, steps: int) -> Curve:
    """Every value as the mean of those of the last `steps` steps."""
    values, total, first = [], 0.0, 0
    for place, step in enumerate(curve.steps):
        total += curve.values[place]
        while curve.steps[first] <= step - steps:
            total -= curve.values[first]
            first += 1
        values.append(total / (place - first + 1))
    return Curve(curve.run, curve.metric, curve.steps, values)


@dataclass(frozen=True)
class Chart:
    """Lines of text above one another; of each character between the axes, which curve it belongs to, or -1."""

    lines: Sequence[str]
    owners: Sequence[Sequence[int]]
    margin: int


def chart(curves: Sequence[Curve], width: int, height: int, *, braille: bool, log: bool = False) -> Chart:
    """Curves over steps in width × height characters, axes included: dots of braille, or a letter for each curve."""
    place = math.log10 if log else float
    values = [value for curve in curves for value in curve.values]
    if log and min(values) <= 0:
        raise InputError(f"a logarithmic axis needs values above 0, got {min(values):g}")
    low, high = min(map(place, values)), max(map(place, values))
    first, last = (choose(step for curve in curves for step in curve.steps) for choose in (min, max))
    shown = [10**value if log else value for value in (high, (low + high) / 2, low)]
    labels = dict(zip((0, (height - 2) // 2, height - 3), [f"{value:.4g}" for value in shown], strict=True))
    margin = max(map(len, labels.values())) + 2
    columns, rows = width - margin, height - 2
    fine = (2 * columns, 4 * rows) if braille else (columns, rows)
    cells = [[0] * columns for _ in range(rows)]
    owners = [[-1] * columns for _ in range(rows)]
    for number, curve in enumerate(curves):
        for x, y in _dots(curve, fine, (first, last), (low, high), place is math.log10):
            row, column = (y // 4, x // 2) if braille else (y, x)
            cells[row][column] |= DOTS[y % 4][x % 2] if braille else 0
            owners[row][column] = number
    lines = []
    for row in range(rows):
        drawn = "".join(
            " " if owner < 0 else chr(0x2800 + cell) if braille else MARKS[owner % len(MARKS)]
            for cell, owner in zip(cells[row], owners[row], strict=True)
        )
        lines.append(f"{labels.get(row, ''):>{margin - 2}} {'┤' if row in labels else '│'}{drawn}".rstrip())
    lines.append(" " * (margin - 1) + "└" + "─" * columns)
    end = f"step {last}"
    lines.append(" " * margin + f"{first}".ljust(columns - len(end)) + end)
    return Chart(lines, owners, margin)


def _dots(
    curve: Curve, size: tuple[int, int], steps: tuple[int, int], values: tuple[float, float], log: bool
) -> Iterator[tuple[int, int]]:
    """Places in a grid of width × height, the mean of a column's values in each, joined by vertical lines."""
    width, height = size
    spread, span = values[1] - values[0] or 1.0, steps[1] - steps[0] or 1
    points = zip(curve.steps, curve.values, strict=True)
    before = None
    for x, some in groupby(points, lambda point: (point[0] - steps[0]) * (width - 1) // span):
        here = [value for _, value in some]
        mean = sum(here) / len(here)
        share = ((math.log10(mean) if log else mean) - values[0]) / spread
        y = round((1 - share) * (height - 1))
        for between in range(min(y, y if before is None else before), max(y, y if before is None else before) + 1):
            yield x, between
        before = y


def picture(curves: Sequence[Curve], kind: str, *, log: bool = False) -> bytes:
    """The same by matplotlib as "png", "svg" or "pdf". Raises ResourceError where it is not installed."""
    figure = canvas(8, 5)
    axes = figure.add_subplot()
    for curve in curves:
        few = len(curve.steps) < 40
        axes.plot(curve.steps, curve.values, label=curve.name, marker="." if few else None, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel(", ".join(sorted({curve.metric for curve in curves})))
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    return written(figure, kind)
