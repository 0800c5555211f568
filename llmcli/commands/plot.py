"""`llmcli plot`: the curves of training runs, or what another command measured, in the terminal or as a picture."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal
from llmcli.commands.options import define, option, output_options, verbosity_options
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.training.curves import Curve

COLORS = (36, 33, 32, 35, 34, 31)  # ANSI: cyan, yellow, green, magenta, blue, red


@define(
    "plot",
    examples=[
        ("the losses of a run, as text", "llmcli plot runs/a"),
        ("two runs in one picture", "llmcli plot runs/a runs/b --format png -o losses.png"),
        ("the learning rate from a log", "llmcli plot --metric lr logs/a.jsonl"),
        ("which texts are hard", "llmcli perplexity part-*.txt --json -o a.json && llmcli plot a.json"),
        ("the samples of a comparison", "llmcli plot speed.json --format png -o speed.png"),
    ],
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@option("--metric", multiple=True, metavar="NAME", help="A figure of the log. [default: loss and val_loss]")
@option("--smooth", type=click.IntRange(1), default=1, metavar="N", help="Draw means over the last N steps.")
@option("--log-scale", is_flag=True, help="A logarithmic axis.")
@option("--width", type=click.IntRange(30, 1000), help="Characters. [default: the terminal's, at most 100]")
@option("--height", type=click.IntRange(8, 500), default=20, help="Lines.")
@output_options("text", "json", "png", "svg", "pdf")
@verbosity_options
def command(
    runs: tuple[str, ...],
    metric: tuple[str, ...],
    smooth: int,
    log_scale: bool,
    width: int | None,
    height: int,
    format: str,
    output: str | None,
) -> None:
    """Draw the curves of RUNs, each the directory of 'llmcli train' or 'finetune', or a --log, over the steps.

    A single RUN may be what 'perplexity', 'compare-perplexity' or 'bench compare' wrote with --json: bars of its
    documents, or the samples of both sides. Text needs nothing else; pictures need matplotlib (pip install
    'llmcli[plot]').
    """
    from llmcli import pictures

    if document := next(filter(None, map(pictures.read, runs)), None):
        if len(runs) > 1 or metric or smooth > 1 or log_scale:
            raise InputError("expected one document alone, without --metric, --smooth and --log-scale")
        draw_document(document, width, format, output)
        return
    from llmcli.training import curves

    found = [curves.smooth(curve, smooth) for run in runs for curve in curves.read(run, metric or curves.METRICS)]
    if format in ("png", "svg", "pdf"):
        terminal.refuse_terminal(output)
        drawn: str | bytes = curves.picture(found, format, log=log_scale)
    elif format == "json":
        series = [
            {"run": one.run, "metric": one.metric, "steps": list(one.steps), "values": list(one.values)}
            for one in found
        ]
        drawn = terminal.to_json({"schema": "llmcli/plot/1", "smooth": smooth, "curves": series}, indent=None)
    else:
        columns = width or min(100, shutil.get_terminal_size().columns)
        color = output in (None, "-") and terminal.wants_color(sys.stdout)
        drawn = as_text(found, columns, height, log=log_scale, color=color)
    with terminal.open_output(output) as out:
        out.write(drawn)


def draw_document(document: dict[str, Any], width: int | None, format: str, output: str | None) -> None:
    """What another command wrote as JSON."""
    from llmcli import pictures

    shown = pictures.bars(document)
    if format in ("png", "svg", "pdf"):
        terminal.refuse_terminal(output)
        drawn: str | bytes = pictures.picture(document, format)
    elif format == "json":
        rows = [{"name": name, "value": value} for name, value in shown.rows]
        drawn = terminal.to_json({"schema": "llmcli/plot/1", "title": shown.title, "unit": shown.unit, "bars": rows})
    else:
        drawn = pictures.as_text(shown, width or min(100, shutil.get_terminal_size().columns))
    with terminal.open_output(output) as out:
        out.write(drawn)


def as_text(found: list[Curve], columns: int, height: int, *, log: bool, color: bool) -> str:
    """A chart and its legend; without colours several curves are told apart by letters instead of dots."""
    from llmcli.training import curves

    dots = color or len(found) == 1
    chart = curves.chart(found, columns, height, braille=dots, log=log)
    lines = list(chart.lines)
    if color:
        for row, owners in enumerate(chart.owners):
            line = lines[row].ljust(chart.margin + len(owners))
            cells = zip(line[chart.margin :], owners, strict=True)
            painted = "".join(cell if owner < 0 else paint(cell, owner) for cell, owner in cells)
            lines[row] = line[: chart.margin] + painted.rstrip()
    for number, curve in enumerate(found):
        mark = "⣿" if dots else curves.MARKS[number % len(curves.MARKS)]
        last = f"{curve.values[-1]:.4f} at step {curve.steps[-1]}, lowest {min(curve.values):.4f}"
        lines.append(f"{paint(mark, number) if color else mark} {curve.name}: {last}")
    return "\n".join(lines) + "\n"


def paint(text: str, number: int) -> str:
    """Text in the colour of a curve."""
    return f"\x1b[{COLORS[number % len(COLORS)]}m{text}\x1b[0m"
