"""The command table, and the one place where an error becomes one line on stderr and an exit code.

Knows click and the terminal; must not import torch, so that help, completion and usage errors stay quick.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from llmcli import __version__
from llmcli.errors import LlmcliError

COMMANDS: dict[str, tuple[str, str]] = {  # name: (module, one-line help), in the order of --help
    "generate": ("llmcli.commands.generate", "Continue a prompt, or a JSONL file of prompts."),
    "chat": ("llmcli.commands.chat", "Talk with a model in the terminal."),
    "perplexity": ("llmcli.commands.perplexity", "Measure how well a model predicts text."),
    "compare-perplexity": ("llmcli.commands.compare_perplexity", "Judge whether a model became worse; exit 3 or 4."),
    "score": ("llmcli.commands.score", "Show how surprising each token is; lint, heat map, multiple choice."),
    "train": ("llmcli.commands.train", "Train a model from scratch on text."),
    "finetune": ("llmcli.commands.finetune", "Continue training a model, on texts or examples."),
    "plot": ("llmcli.commands.plot", "Draw the curves of training runs, as text or as a picture."),
    "evaluate": ("llmcli.commands.evaluate", "Compare what a model writes with what it should have written."),
    "classify": ("llmcli.commands.classify", "Label texts with a model that was fine-tuned for it."),
    "fill-mask": ("llmcli.commands.fill_mask", "Fill in the masked tokens of texts with an encoder."),
    "embed": ("llmcli.commands.embed", "Turn texts into vectors with an encoder."),
    "quantize": ("llmcli.commands.quantize", "Save a model in 8 or 4 bits."),
    "convert": ("llmcli.commands.convert", "Save a model in another precision, packed to open at once, or as GGUF."),
    "bench": ("llmcli.commands.bench", "Measure prefill, decode and single operators."),
    "data": ("llmcli.commands.data", "Make training data ready: normalise, filter, drop duplicates."),
    "tokenizer": ("llmcli.commands.tokenizer", "Make a tokenizer from text."),
    "tokenize": ("llmcli.commands.tokenize", "Turn text into token ids, pieces or a count."),
    "detokenize": ("llmcli.commands.detokenize", "Turn token ids back into text."),
    "compress": ("llmcli.commands.compress", "Compress a file with a model: the audit of its bits per byte."),
    "decompress": ("llmcli.commands.decompress", "Bring back what 'compress' wrote, byte for byte."),
    "verify": ("llmcli.commands.verify", "Check determinism, the cache and every kernel; exit 3 where one fails."),
    "replay": ("llmcli.commands.replay", "Generate again what a receipt records; exit 3 where it differs."),
    "models": ("llmcli.commands.models", "List the models that can be named and whether they are here."),
    "doctor": ("llmcli.commands.doctor", "Show what llmcli runs on, and check this installation."),
    "completion": ("llmcli.commands.completion", "Print the completion script of a shell."),
}
ALIASES = {"ppl": "perplexity"}

SIGINT, SIGPIPE, SIGTERM = 130, 141, 143  # 128 + the signal's number, as a shell reports it
TOLD_ONCE = (2, 5, SIGINT, SIGTERM)  # exit codes that all processes of one machine come to alike
_MEMORY = (
    "not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc",
    "failed to map segment",
)  # fmt: skip
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CommandLine(click.Group):
    """The command table as a click group: a command's module is imported when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands of the table; aliases stay out of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command's module; None when the table has no such name."""
        row = COMMANDS.get(ALIASES.get(name, name))
        if row is None:
            return None
        command: click.Command = import_module(row[0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing one command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown name is answered with the nearest known one."""
        command = self.get_command(ctx, args[0])
        if command is not None:
            return command.name, command, args[1:]  # the true name, so that an alias reads the same variables
        if args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        import difflib  # only where something is misspelt

        near = difflib.get_close_matches(args[0], [*COMMANDS, *ALIASES], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of: {', '.join(COMMANDS)}"
        raise click.UsageError(f"no command '{args[0]}'; {hint}", ctx)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run one command line and leave through SystemExit with its exit code, whatever happens."""
        received = extra.pop("received", None)
        extra.pop("standalone_mode", None)
        extra.pop("prog_name", None)
        arguments = list(sys.argv[1:] if args is None else args)
        if instruction := os.environ.get("_LLMCLI_COMPLETE"):
            from click.shell_completion import shell_complete

            sys.exit(shell_complete(self, extra, "llmcli", "_LLMCLI_COMPLETE", instruction))
        meta: dict[str, Any] = {}
        try:
            with self.make_context("llmcli", arguments, **extra) as ctx:
                meta = ctx.meta
                meta["signals"] = received
                self.invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            sys.exit(0)
        except click.exceptions.Exit as leave:
            sys.exit(leave.exit_code)
        except SystemExit:
            raise
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except BaseException as caught:
            code, message = explain(received.exception() if received is not None and received.code else caught)
            if meta.get("verbose"):
                import traceback

                traceback.print_exception(caught)
            if message and not (meta.get("same_everywhere") and code in TOLD_ONCE):
                report(message)
            sys.exit(code)


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line for an error; an empty line for one that ends quietly."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, LlmcliError):
        return error.exit_code, f"error: {text}"
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "llmcli"
        message = " ".join(error.format_message().split())
        if isinstance(error, click.NoSuchOption):
            near = f"; did you mean '{error.possibilities[0]}'?" if error.possibilities else ""
            message = f"no option '{error.option_name}'{near}"
        return 2, f"error: {message[:1].lower()}{message[1:].rstrip('.')} (see '{where} --help')"
    if isinstance(error, click.ClickException):
        return 2, f"error: {error.format_message()}"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return SIGINT, "interrupted"
    if isinstance(error, SystemExit):
        return SIGTERM, "terminated"
    if isinstance(error, BrokenPipeError):
        return SIGPIPE, ""
    lower = text.lower()
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in lower for words in _MEMORY):
        what = f" ({text[:200]})" if text else ""
        return 6, f"error: out of memory{what}; use a smaller model, batch or context, or a 16-bit --dtype"
    if number in _FULL or "no space left on device" in lower:
        what = getattr(error, "filename", None) or "the output"
        return 6, f"error: no space left on the device while writing {what}; free some space and run again"
    if isinstance(error, OSError) and error.filename is not None:
        if number == errno.ENOENT:
            return 5, f"error: expected an existing file, got '{error.filename}', which does not exist"
        if number in _UNWRITABLE:
            return 2, f"error: cannot use '{error.filename}': {error.strerror}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("llmcli."):
        return 6, f"error: expected a working installation, got: {text}; reinstall llmcli and torch"
    kind = type(error).__name__
    return (
        1,
        f"error: internal error: {kind}: {text or 'no message'}; this is a bug, run again with -v for the traceback",
    )


def report(line: str) -> None:
    """Write one line to stderr; a closed stderr changes nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")  # not print: with stderr closed that would fall back to stdout
        sys.stderr.flush()


def version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version and leave."""
    if wanted and not ctx.resilient_parsing:
        click.echo(f"llmcli {__version__}")
        ctx.exit()


cli = CommandLine(
    name="llmcli",
    help="The language model you can put in a Makefile: text in, text out, an exit code that means something.",
    epilog="Every flag can be set as LLMCLI_<COMMAND>_<FLAG>. 'llmcli COMMAND --help' shows examples.",
    context_settings={
        "auto_envvar_prefix": "LLMCLI",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
    params=[
        click.Option(
            ["-V", "--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            allow_from_autoenv=False,
            callback=version,
            help="Show the version and exit.",
        )
    ],
)


class Signals:
    """SIGINT raises KeyboardInterrupt, SIGTERM raises SystemExit, and what came is remembered.

    An import or a callback in C++ may turn the exception into another one; the exit code is still the signal's.
    """

    def __init__(self) -> None:
        self.code = 0
        signal.signal(signal.SIGTERM, self.receive)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job keeps ignoring Ctrl-C
            signal.signal(signal.SIGINT, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> NoReturn:
        """Leave through the context managers, so that nothing half-written stays."""
        self.code = 128 + number
        raise self.exception()

    def exception(self) -> BaseException:
        """The exception of the signal that came."""
        return KeyboardInterrupt() if self.code == SIGINT else SystemExit(self.code)


def main() -> NoReturn:
    """The process: signals, one command line, an exit code. Never returns."""
    import warnings

    if not {"-v", "--verbose"} & set(sys.argv):
        warnings.simplefilter("ignore")  # a library's warning is not the user's news
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # or the next file opened would be taken for it
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # whatever the locale says
    signals = Signals()
    code = 1
    try:
        cli.main(received=signals)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except KeyboardInterrupt:
        code = SIGINT
    leave_process(signals.code or code)


def leave_process(code: int) -> NoReturn:
    """End at once: the interpreter's own teardown is slow after torch, and prints when a pipe is closed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = code or SIGPIPE
        except OSError as error:
            code = code or explain(error)[0]
    if code == SIGINT and _in_foreground():
        # Dying of the signal itself makes a shell stop its loop as well; its $? is 130 either way.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
