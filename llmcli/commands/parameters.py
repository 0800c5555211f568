"""The shape of a command and of a flag: help with examples, hidden aliases, and the kinds of values.

Knows click; must not import torch before a command runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

Function = Callable[..., Any]
MAX_SEED = 2**63 - 1


class Command(click.Command):
    """A command whose help ends with examples: (what it does, the command line)."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an error knows its command, so that the user is sent to the right help."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, unwrapped so that they can be copied."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for purpose, line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}# {purpose}\n")
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(Command, click.Group):
    """A command that is nothing but its subcommands."""


class Option(click.Option):
    """An option that also answers to `aliases`, other tools' names for it, which its help does not show."""

    def __init__(self, declarations: Sequence[str], *, aliases: Sequence[str] = (), **settings: Any) -> None:
        super().__init__([*declarations, *aliases], **settings)
        self.aliases = frozenset(aliases)
        if self.metavar is None and not self.is_flag:
            kinds = ((click.IntRange, "N"), (Number, "X"))
            self.metavar = next((word for kind, word in kinds if isinstance(self.type, kind)), None)

    @contextlib.contextmanager
    def _without_aliases(self) -> Iterator[None]:
        every = self.opts
        self.opts = [name for name in every if name not in self.aliases]
        try:
            yield
        finally:
            self.opts = every

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The help line, without the aliases."""
        with self._without_aliases():
            return super().get_help_record(ctx)

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What follows the help text: the default, as short as it can be written; ranges are left to the errors."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        if isinstance(self.default, float) and "default" in extra:
            extra["default"] = f"{self.default:g}"
        return extra

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The names in an error, without the aliases."""
        with self._without_aliases():
            return super().get_error_hint(ctx)


def define(name: str, *, examples: Sequence[tuple[str, str]], **settings: Any) -> Callable[[Function], click.Command]:
    """Like `click.command`, with the examples that every command has."""
    return click.command(name, cls=Command, examples=examples, **settings)


def option(*declarations: str, aliases: Sequence[str] = (), **settings: Any) -> Callable[[Function], Function]:
    """Like `click.option`, with hidden aliases."""
    return click.option(*declarations, cls=Option, aliases=aliases, **settings)


class Number(click.FloatRange):
    """A finite number in a range; click's own range lets NaN through."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse NaN and infinity, then check the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}", param, ctx)
        return float(number)


class Seed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A seed from 0 to 2^63 - 1; `random` draws one and prints it on stderr, so that the run can be repeated."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seed as an int."""
        if value == "random":
            seed = int.from_bytes(os.urandom(4), "little")  # the module secrets is slow to import
            click.echo(f"seed: {seed}", err=True)
            return seed
        try:
            seed = int(value)
        except ValueError:
            seed = -1
        if not 0 <= seed <= MAX_SEED:
            self.fail(f"expected a whole number from 0 to 2^63 - 1 or 'random', got {value!r}", param, ctx)
        return seed

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "N|random"


class Device(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """auto, cpu, cuda or cuda:INDEX; whether it is there is known when the model is loaded."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The device's name, in lower case."""
        device = str(value).lower()
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            self.fail(f"expected auto, cpu, cuda or cuda:INDEX, got {value!r}", param, ctx)
        return device

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "auto|cpu|cuda[:i]"


class Bits(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """An amount of surprise such as 12bits, 12 or 8.3nats, as bits."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number in bits."""
        text = str(value).strip().lower()
        number, scale = (text[:-4], 1 / math.log(2)) if text.endswith("nats") else (text.removesuffix("bits"), 1.0)
        return Number(0, 1e6).convert(number, param, ctx) * scale

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "BITS"


class Percent(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A change in per cent, such as 0.5% or 0.5."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of per cent."""
        return Number(-100, 1e6).convert(str(value).strip().removesuffix("%"), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "PERCENT"
