"""Progress on stderr: a bar on a terminal, otherwise one plain line every ten seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click

from llmcli.commands.terminal import check_interrupt

DELAY = 1.0  # seconds before anything is shown: quick work stays silent
INTERVAL = 10.0  # seconds between plain lines


def quiet_hub() -> None:
    """Keep the hub library's own download bars off a stderr that is not a terminal, and off with -q."""
    context = click.get_current_context(silent=True)
    if sys.stderr is None or not sys.stderr.isatty() or (context and context.meta.get("quiet")):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Progress:
    """Shows how far a piece of work is; silent with -q, or when the work takes less than a second.

    `unit` is the name of what is counted; "B" counts bytes.
    """

    def __init__(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        context = click.get_current_context(silent=True)
        self._quiet = sys.stderr is None or bool(context and context.meta.get("quiet"))
        self._bars = not self._quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._what, self._total, self._unit = what, total, unit
        self._begin = self._printed = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: float, total: float | None = None, note: Callable[[], str] = str) -> None:
        """Report `done` of `total` in the unit of the work; `note` gives a few words such as the current loss.

        It is asked only when something is shown.
        """
        check_interrupt()
        self._total = self._total if total is None else total
        now = time.monotonic()
        if self._quiet or now - self._begin < DELAY:
            return
        if self._bars:
            self._draw(done, note())
        elif now - self._printed >= INTERVAL:
            self._printed = now
            share = f" {100 * done / self._total:.0f} %," if self._total else ""
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{self._what}:{share} {self._amount(done)} {note()}".rstrip() + "\n")
                sys.stderr.flush()

    def _amount(self, done: float) -> str:
        scale, digits, unit = (1e6, 1, "MB") if self._unit == "B" else (1.0, 0, self._unit)
        of = f"/{self._total / scale:.{digits}f}" if self._total else ""
        return f"{done / scale:.{digits}f}{of} {unit}".rstrip()

    def _draw(self, done: float, note: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[amount]} {task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True, highlight=False),
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(self._what, total=self._total, amount="", note="")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=self._total, amount=self._amount(done), note=note)
