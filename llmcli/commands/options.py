"""The flags that several commands share, each written once.

Knows click; must not import torch before a command runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.parameters import Command, Device, Function, Group, Number, Seed, define, option
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.loading import Loaded

__all__ = ["Command", "Device", "Group", "Number", "Seed", "define", "option"]  # what commands name beside the flags


@dataclass(frozen=True)
class Engine:
    """Where and how a model runs: the flags of `engine_options`."""

    device: str
    dtype: str
    threads: int | None
    require_kernels: bool

    def prepare(self, *, training: bool = False, largest: int | None = None) -> None:
        """Set the thread count; with --require-kernels, refuse an op that would run on its fallback.

        The backward pass counts only in training, which keeps its memory, too: `largest` is for `memory.keep`. Raises
        ResourceError.
        """
        if training:
            from llmcli.training import memory

            memory.keep(largest)
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.require_kernels:
            from llmcli.device import choose_device
            from llmcli.ops.registry import require_kernels

            where = choose_device("auto").type if self.device == "auto" else self.device
            require_kernels(where, training=training, also=self.chosen_operators())

    def chosen_operators(self) -> Collection[str]:
        """Operators that the flags call for on any device."""
        return ()


@dataclass(frozen=True)
class ModelChoice(Engine):
    """Which model, where and how: the flags of `model_options`."""

    model: str | None
    offline: bool
    quantize: str | None = None
    cache_dtype: str = "auto"

    def chosen_operators(self) -> Collection[str]:
        """As `Engine`; the cache that a GPU has to itself (`nn.static_cache`) holds the activations' own type alone."""
        return () if self.cache_dtype == "auto" else ("cached_attention",)

    def load(self, *, kinds: Collection[str] = ("decoder",), classifier: bool = False) -> Loaded:
        """Load a model of one of the kinds and its tokenizer, with progress on stderr.

        Raises ModelError and ResourceError.
        """
        self.prepare()
        from llmcli import loading
        from llmcli.commands.progress import Progress, quiet_hub
        from llmcli.commands.terminal import note

        quiet_hub()
        with Progress("loading weights", unit="B") as progress:
            loaded = loading.load(
                "default" if self.model is None else self.model,
                device=self.device,
                dtype=self.dtype,
                offline=self.offline,
                kinds=kinds,
                classifier=classifier,
                quantize=self.quantize,
                cache_dtype=self.cache_dtype,
                progress=progress,
            )
        if self.device == "auto" and loaded.device.type == "cuda":
            import torch

            note(f"computing on {loaded.device}: {torch.cuda.get_device_name(loaded.device)}")
        return loaded


def gather(function: Function, kind: type[Any], argument: str, decorators: Iterable[Any]) -> Function:
    """Add the options to a command and hand them over as one object."""
    fields = kind.__dataclass_fields__

    @functools.wraps(function)
    def gathered(*args: Any, **values: Any) -> Any:
        values[argument] = kind(**{name: values.pop(name) for name in fields if name in values})
        return function(*args, **values)

    for decorator in reversed(list(decorators)):
        gathered = decorator(gathered)
    return gathered


WRITES = ("decoder", "encoder-decoder")  # the kinds of models that write text

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
quantize_option = option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Bring the matrices to 8 or 4 bits while loading; faster, a little less exact (see quantize).",
)
cache_dtype_option = option(
    "--cache-dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16", "int8"]),
    default="auto",
    help="What the cache of keys and values holds; int8 is the smallest. auto: the type of the activations.",
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
    return gather(function, Engine, "engine", _ENGINE)


def model_options(function: Function) -> Function:
    """Add -m, --offline and the flags of `engine_options`; the command gets them as `choice: ModelChoice`."""
    return gather(function, ModelChoice, "choice", (model_option, *_ENGINE, offline_option))


def tokenizer_options(function: Function) -> Function:
    """Add -m and --offline, for commands that need no weights; passed as `model` and `offline`."""

    @functools.wraps(function)
    def named(*args: Any, **values: Any) -> Any:
        from llmcli.commands.progress import quiet_hub

        quiet_hub()
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
                help="Above 1, tokens that occurred become less likely. [default: what the model's "
                "generation_config.json advises; 1 where it says nothing]",
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
