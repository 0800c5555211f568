"""Figures of classes for people, which `classify` and `finetune` show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli.commands import terminal

if TYPE_CHECKING:
    from llmcli.classification import Figures

COLUMNS = ("precision", "recall", "f1")


def table(figures: Figures) -> str:
    """A row per class with its part of the confusion matrix, and a row of means."""
    rows = [
        [label, *(f"{one[key]:.4f}" for key in COLUMNS), str(int(one["support"])), *map(str, figures.confusion[number])]
        for number, (label, one) in enumerate(figures.classes.items())
    ]
    support = str(sum(int(one["support"]) for one in figures.classes.values()))
    rows.append(["macro", *(f"{figures.macro[key]:.4f}" for key in COLUMNS), support, *[""] * len(figures.labels)])
    header = ["class", *COLUMNS, "texts", *(f"as {label}" for label in figures.labels)]
    return terminal.table(header, rows, right=range(1, len(header)))
