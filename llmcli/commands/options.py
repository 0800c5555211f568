"""The flags that several commands share, each written once, and the shape of a command's help.

Knows click; must not import torch before a command runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.loading import Loaded

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


class Seed(click.ParamType[int]):
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


class Device(click.ParamType[str]):
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


@dataclass(frozen=True)
class Engine:
    """Where and how a model runs: the flags of `engine_options`."""

    device: str
    dtype: str
    threads: int | None
    require_kernels: bool

    def prepare(self) -> None:
        """Set the thread count; with --require-kernels, refuse an op that would run on its fallback.

        Raises ResourceError.
        """
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.require_kernels:
            from llmcli.ops.registry import require_kernels

            automatic = "cuda" if torch.cuda.is_available() else "cpu"
            require_kernels(automatic if self.device == "auto" else self.device)


@dataclass(frozen=True)
class ModelChoice(Engine):
    """Which model, where and how: the flags of `model_options`."""

    model: str | None
    offline: bool

    def load(self) -> Loaded:
        """Load the model and its tokenizer, with progress on stderr. Raises ModelError and ResourceError."""
        self.prepare()
        from llmcli import loading
        from llmcli.commands.progress import Progress, quiet_hub

        quiet_hub()
        with Progress("loading weights", unit="B") as progress:
            return loading.load(
                "default" if self.model is None else self.model,
                device=self.device,
                dtype=self.dtype,
                offline=self.offline,
                progress=progress,
            )


def _gather(function: Function, kind: type[Any], argument: str, decorators: Iterable[Any]) -> Function:
    """Add the options to a command and hand them over as one object."""
    fields = kind.__dataclass_fields__

    @functools.wraps(function)
    def gathered(*args: Any, **values: Any) -> Any:
        values[argument] = kind(**{name: values.pop(name) for name in fields})
        return function(*args, **values)

    for decorator in reversed(list(decorators)):
        gathered = decorator(gathered)
    return gathered


model_option = option(
    "-m",
    "--model",
    aliases=["--checkpoint"],
    type=click.Path(),
    metavar="MODEL",
    help="A directory, a file, an alias, or user/name on the Hugging Face hub. [default: the embedded model]",
)
offline_option = option("--offline", is_flag=True, help="Never use the network; also HF_HUB_OFFLINE=1.")
device_option = option("--device", type=Device(), default="auto", help="Where to compute.")
require_kernels_option = option(
    "--require-kernels", is_flag=True, help="Exit 6 where an operator would run without its kernel."
)
_ENGINE = (
    device_option,
    option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="Precision of weights and activations.",
    ),
    option("-t", "--threads", type=click.IntRange(1, 4096), metavar="N", help="CPU threads. [default: torch's]"),
    require_kernels_option,
)


def engine_options(function: Function) -> Function:
    """Add --device, --dtype, -t and --require-kernels; the command gets them as `engine: Engine`."""
    return _gather(function, Engine, "engine", _ENGINE)


def model_options(function: Function) -> Function:
    """Add -m, --offline and the flags of `engine_options`; the command gets them as `choice: ModelChoice`."""
    return _gather(function, ModelChoice, "choice", (model_option, *_ENGINE, offline_option))


def tokenizer_options(function: Function) -> Function:
    """Add -m and --offline, for commands that need no weights; passed as `model` and `offline`."""

    @functools.wraps(function)
    def named(*args: Any, **values: Any) -> Any:
        values["model"] = "default" if values["model"] is None else values["model"]
        return function(*args, **values)

    return model_option(offline_option(named))


def prompt_options(function: Function) -> Function:
    """Add [TEXT], -f, --encoding-errors and --escape; passed as `text`, which may be empty."""

    @functools.wraps(function)
    def resolved(*args: Any, **values: Any) -> Any:
        from llmcli.commands.terminal import read_prompt

        values["text"] = read_prompt(
            values["text"],
            None,
            values.pop("file"),
            errors=values.pop("encoding_errors"),
            escape=values.pop("escape"),
            empty=True,
        )
        return function(*args, **values)

    decorated: Function = resolved
    for decorator in reversed((click.argument("text", required=False), *encoding_options, _FILE)):
        decorated = decorator(decorated)
    return decorated


_FILE = option("-f", "--file", type=click.Path(), metavar="FILE", help="Read the text from FILE; '-' is stdin.")
encoding_options = (
    option(
        "--encoding-errors",
        type=click.Choice(["strict", "replace"]),
        default="strict",
        help="Refuse bytes that are not UTF-8, or replace them by U+FFFD.",
    ),
    option("--escape", is_flag=True, help=r"Interpret \n, \t, \\, \xHH and \uHHHH in the text given as an argument."),
)


def sampling_options(function: Function) -> Function:
    """Add the sampling flags and --seed, each passed under its own name."""
    for decorator in reversed(
        (
            option(
                "--temperature",
                aliases=["--temp"],
                type=Number(0, 100),
                default=0.0,
                help="0 takes the likeliest token; 1 samples from the model's own distribution.",
            ),
            option(
                "--top-k",
                type=click.IntRange(0),
                default=0,
                metavar="K",
                help="Sample among the K likeliest tokens; 0 for all.",
            ),
            option(
                "--top-p",
                type=Number(0, 1),
                default=1.0,
                help="Sample among the likeliest tokens that together have this probability.",
            ),
            option(
                "--min-p",
                type=Number(0, 1),
                default=0.0,
                help="Drop tokens less likely than this fraction of the likeliest.",
            ),
            option(
                "--repetition-penalty",
                aliases=["--repeat-penalty"],
                type=Number(0, 100, min_open=True),
                default=1.0,
                help="Above 1, tokens that occurred become less likely.",
            ),
            option(
                "--presence-penalty",
                type=Number(-100, 100),
                default=0.0,
                help="Subtracted from the logit of every token that was generated.",
            ),
            option(
                "--frequency-penalty",
                type=Number(-100, 100),
                default=0.0,
                help="Subtracted once for each time a token was generated.",
            ),
            seed_option,
        )
    ):
        function = decorator(function)
    return function


seed_option = option(
    "--seed",
    "-s",
    type=Seed(),
    default=0,
    help="The same seed gives the same output; 'random' prints the one it draws.",
)


def output_options(*formats: str) -> Callable[[Function], Function]:
    """Add --format (the first is the default), --json, and -o; passed as `format` and `output`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def merged(*args: Any, **values: Any) -> Any:
            if values.pop("json", False):
                source = click.get_current_context().get_parameter_source("format")
                if source is click.core.ParameterSource.COMMANDLINE and values["format"] != "json":
                    raise InputError(f"expected one output format, got --format {values['format']} and --json")
                values["format"] = "json"
            return function(*args, **values)

        decorated: Function = merged
        if "json" in formats:
            decorated = option("--json", is_flag=True, help="The same as --format json.")(decorated)
        decorated = option(
            "-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE instead of stdout; '-' is stdout."
        )(decorated)
        return option("--format", type=click.Choice(formats), default=formats[0], help="Format of the output.")(
            decorated
        )

    return decorate


def verbosity_options(function: Function) -> Function:
    """Add -q and -v; commands need not take them: `terminal` and `cli` read them from the context."""

    def note(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[str(param.name)] = value

    quiet = option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=note,
        is_eager=True,
        help="Nothing on stderr but errors.",
    )
    verbose = option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=note,
        is_eager=True,
        help="More on stderr; a traceback after an error.",
    )
    return quiet(verbose(function))
