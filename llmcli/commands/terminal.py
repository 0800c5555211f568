"""Text in, text out: prompts, strict UTF-8, stdout, files written beside and renamed, Ctrl-C, tables.

Knows terminals and bytes; knows nothing of models. stdout is the product, stderr the conversation.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import select
import signal
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import IO, Any, BinaryIO, TypeVar

import click

from llmcli.errors import InputError, ModelError, ResourceError

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\", '"': '"', "'": "'"}
Item = TypeVar("Item")
PATIENCE = 2.0  # seconds of silence on stdin before the user is told what is awaited


def decode(data: bytes, source: str, errors: str = "strict") -> str:
    """Bytes as UTF-8 text. Raises InputError with the byte offset unless `errors` is "replace"."""
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8, got byte 0x{data[error.start]:02x} at offset {error.start} of {source}; "
            "convert the text or pass --encoding-errors replace"
        ) from None


def open_input(path: str) -> BinaryIO:
    """A file to read. Raises ModelError when it is missing, InputError when it cannot be read."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ModelError(f"expected an existing file, got '{path}', which does not exist") from None
    except OSError as error:
        raise InputError(f"expected a readable file, got '{path}': {error.strerror}") from None
    except ValueError:
        raise InputError(f"expected a file name, got {path!r}") from None


def read_bytes(path: str, limit: int | None = None) -> bytes:
    """A file's bytes; '-' is stdin. Raises as `open_input` does, and InputError above `limit` bytes."""
    name = "standard input" if path == "-" else f"'{path}'"
    with contextlib.nullcontext(open_stdin()) if path == "-" else open_input(path) as stream:
        try:
            data = stream.read() if limit is None else stream.read(limit + 1)
        except OSError as error:
            raise InputError(f"expected readable text, got {name}: {error.strerror}") from None
    if limit is not None and len(data) > limit:
        raise InputError(f"expected at most {size(limit)} of text, got more in {name}; pass a part of it")
    return data


def read_lines(path: str) -> Iterator[bytes]:
    """A file's lines, each as soon as it is there; '-' is stdin. Raises as `open_input` does."""
    if path == "-":
        yield from open_stdin()
        return
    with open_input(path) as stream:
        yield from stream


def read_text(path: str, errors: str = "strict", limit: int | None = None) -> str:
    """A file as UTF-8 text; '-' is stdin. Raises as `read_bytes` and `decode` do."""
    return decode(read_bytes(path, limit), "standard input" if path == "-" else f"'{path}'", errors)


def stdin_is_terminal() -> bool:
    """True when nothing is piped in: a terminal, or no stdin at all."""
    try:
        return sys.stdin is None or sys.stdin.isatty()
    except ValueError:  # closed
        return True


def open_stdin() -> BinaryIO:
    """Stdin as bytes; says on stderr what it waits for when nothing comes. Raises InputError when there is none."""
    if sys.stdin is None:
        raise InputError("expected text on standard input, got a closed stream")
    if not sys.stdin.isatty():
        with contextlib.suppress(OSError, ValueError):  # not a selectable file
            if not select.select([sys.stdin.fileno()], [], [], PATIENCE)[0]:
                note("waiting for text on standard input; close it (</dev/null) when there is none")
    return sys.stdin.buffer


def unescape(text: str) -> str:
    r"""Interpret \n \r \t \0 \\ \" \' and the code points \xHH \uHHHH \UHHHHHHHH; else InputError."""

    def one(match: re.Match[str]) -> str:
        if match[1] in _ESCAPES:
            return _ESCAPES[match[1]]
        code = int(match[1][1:], 16) if len(match[1]) > 1 else -1
        if not 0 <= code <= 0x10FFFF or 0xD800 <= code < 0xE000:
            raise InputError(
                f"expected an escape such as \\n, \\t, \\\\, \\x41 or \\u00e9, got '{match[0]}' at character "
                f"{match.start()}; write \\\\ for a backslash, or drop --escape"
            )
        return chr(code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.|\Z)", one, text, flags=re.DOTALL)


def read_prompt(
    argument: str | None,
    flag: str | None,
    file: str | None,
    *,
    errors: str = "strict",
    escape: bool = False,
    empty: bool = False,
    limit: int | None = None,
) -> str:
    """The prompt: positional argument (after piped text), else -p, else -f, else stdin; '-' is stdin.

    `escape` interprets backslash escapes in the argument or flag, never in a file or in piped text.
    Raises InputError when there is none, when a file or pipe holds more than `limit` bytes, or when the text is empty
    unless `empty`.
    """
    typed = argument if argument is not None else flag
    if typed is not None and typed != "-":
        text = decode(os.fsencode(typed), "the prompt", errors)  # argv, whatever the locale made of it
        text = unescape(text) if escape else text
        if argument is not None and not stdin_is_terminal():
            text = read_text("-", errors, limit) + text
    elif typed is None and file is not None:
        text = read_text(file, errors, limit)
    elif typed is None and stdin_is_terminal():
        raise InputError("expected a prompt, got none; pass it as an argument, with -f FILE, or through a pipe")
    else:
        text = read_text("-", errors, limit)
    if not text and not empty:
        raise InputError("expected a prompt, got empty text; pass at least one character")
    return text


def note(text: str) -> None:
    """One line on stderr, unless -q; a closed stderr changes nothing."""
    context = click.get_current_context(silent=True)
    if context is None or not context.meta.get("quiet"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text + "\n")  # not print: with stderr closed that would fall back to stdout
            sys.stderr.flush()


def is_verbose() -> bool:
    """True when -v was given."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("verbose"))


class Writer:
    """UTF-8 text to stdout or a file; flushed at every write when someone watches or reads along."""

    def __init__(self, stream: IO[bytes], name: str, *, eager: bool) -> None:
        self._stream, self._name, self._eager = stream, name, eager

    def write(self, text: str | bytes) -> None:
        """Write all of it. Raises ResourceError when the device is full, BrokenPipeError when the reader left."""
        try:
            rest = memoryview(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
            while rest:  # a pipe may take a part, when a signal comes
                rest = rest[self._stream.write(rest) :]
            if self._eager:
                self._stream.flush()
        except OSError as error:
            raise self._explain(error) from None

    def flush(self) -> None:
        """Push out what is buffered; raises as `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            raise self._explain(error) from None

    def _explain(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return ResourceError(f"no space left on the device while writing {self._name}; free some space")
        return error


def refuse_terminal(path: str | None) -> None:
    """Raise InputError where bytes that are no text would go to a terminal."""
    if path in (None, "-") and sys.stdout is not None and sys.stdout.isatty():
        raise InputError("expected a file or a pipe for bytes that are no text; pass -o FILE")


@contextlib.contextmanager
def open_output(path: str | None = None) -> Iterator[Writer]:
    """A writer on stdout (None or '-') or on a file, which appears whole when the block ends well, or not at all.

    Raises InputError when the file cannot be created, ResourceError when the device is full.
    """
    if path is None or path in ("-", "/dev/stdout", "/dev/fd/1"):
        if sys.stdout is None:
            raise ResourceError("expected an open standard output, got a closed one; redirect it or pass -o FILE")
        writer = Writer(sys.stdout.buffer, "standard output", eager=True)
        yield writer
        writer.flush()
        return
    target = os.path.realpath(path)  # a link stays a link
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG | (0o666 & ~_umask())
    if not stat.S_ISREG(mode):  # a device or a named pipe takes the bytes as they come
        with _create(path, path, os.O_WRONLY) as stream:
            yield Writer(stream, f"'{path}'", eager=False)
        return
    # Named before it is created: whenever a signal comes, the name is known and the file goes.
    beside = f"{os.path.dirname(target)}/.{os.path.basename(target)[:200]}.{os.urandom(4).hex()}"
    try:
        with _create(path, beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as stream:
            os.fchmod(stream.fileno(), stat.S_IMODE(mode))
            writer = Writer(stream, f"'{path}'", eager=False)
            yield writer
            writer.flush()
            os.fsync(stream.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


@contextlib.contextmanager
def open_appended(path: str) -> Iterator[tuple[Iterator[bytes], Writer]]:
    """The whole lines of a file that an earlier run began, to be read first, and a writer that goes on behind them.

    What the writer wrote stays, whatever ends the block; a line without an end is cut off. Raises InputError for what
    is no regular file.
    """
    try:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except OSError as error:
        raise InputError(f"expected a file that can be written, got '{path}': {error.strerror}") from None
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise InputError(f"expected a regular file to go on with, got '{path}'")

        def lines() -> Iterator[bytes]:
            end = 0
            while (line := stream.readline()).endswith(b"\n"):
                end += len(line)
                yield line
            stream.truncate(end)
            stream.seek(end)

        yield lines(), Writer(stream, f"'{path}'", eager=True)


def _create(path: str, file: str, flags: int) -> BinaryIO:
    """Open `file`, in which what is meant for `path` is written. Raises InputError and ResourceError."""
    try:
        return os.fdopen(os.open(file, flags, 0o600), "wb", buffering=0 if file == path else -1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left on the device while creating '{path}'; free some space") from None
        raise InputError(f"expected a file that can be written, got '{path}': {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Interrupt:
    """Whether Ctrl-C was pressed inside `interruptible`."""

    stop_requested = False

    def while_reading(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items; Ctrl-C while the next one is waited for is heard at once, and ends them."""
        while True:
            before = signal.getsignal(signal.SIGINT)
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                item = next(items)
            except StopIteration:
                return
            except KeyboardInterrupt:
                self.stop_requested = True
                return
            finally:
                if before is not signal.SIG_IGN:
                    signal.signal(signal.SIGINT, before)
            yield item


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and the exception was lost, as in some libraries' imports."""
    context = click.get_current_context(silent=True)
    signals = context.meta.get("signals") if context else None
    if signals is not None and signals.code:
        raise signals.exception()


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Ctrl-C sets `stop_requested`, so that the block can finish what it is at; a second one ends it at once.

    When the block ends after a request, the command exits with 130.
    """
    check_interrupt()
    interrupt = Interrupt()

    def request(number: int, frame: FrameType | None) -> None:
        if interrupt.stop_requested:
            raise KeyboardInterrupt
        interrupt.stop_requested = True

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield interrupt
        return
    signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt.stop_requested:
        raise click.exceptions.Exit(130)


def plain(value: Any) -> Any:
    """The same document with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def to_json(document: Any, *, indent: int | None = 2) -> str:
    """One JSON document with a newline at its end; `indent=None` gives a line of JSONL."""
    return json.dumps(plain(document), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def size(count: int) -> str:
    """Bytes as 512 B, 16.0 MB or 2.1 GB (powers of ten)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def figure(value: float | None) -> str:
    """A count as it is, a figure with four decimals, and '-' for one that does not exist."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value < 1e6 else f"{value:.4g}"


def wants_color(stream: Any) -> bool:
    """Colour only on a terminal; NO_COLOR and TERM=dumb turn it off, FORCE_COLOR turns it on."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream is not None and bool(stream.isatty())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Aligned columns under a header, ready to print; `right` names the right-aligned columns.

    Cells are never cut: a terminal that is too narrow folds the widest column.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, title in enumerate(columns):
        grid.add_column(title, justify="right" if index in set(right) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    color = wants_color(sys.stdout)
    watched = sys.stdout is not None and sys.stdout.isatty()
    console = Console(
        force_terminal=color, no_color=not color, color_system="standard" if color else None,
        width=None if watched else 1000, highlight=False,
    )  # fmt: skip
    with console.capture() as capture:
        console.print(grid)
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())
