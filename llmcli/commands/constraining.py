"""The flags that say what a text must match: --regex and --json-schema; and the end of a run whose text does not."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmcli.commands import terminal
from llmcli.commands.options import option
from llmcli.commands.parameters import Function
from llmcli.errors import GateFailed, InputError

if TYPE_CHECKING:
    from llmcli.generation.completions import Completion

LIMIT = 16_000_000  # bytes of a schema


def constraint_options(function: Function) -> Function:
    """Add --regex and --json-schema; passed as `regex` and, read and parsed, as `json_schema`."""

    @functools.wraps(function)
    def resolved(*args: Any, **values: Any) -> Any:
        if values["regex"] is not None and values["json_schema"] is not None:
            raise InputError("expected --regex or --json-schema, got both")
        if values["json_schema"] is not None:
            values["json_schema"] = read_schema(values["json_schema"])
        return function(*args, **values)

    decorated: Function = resolved
    for decorator in reversed(
        (
            option("--regex", metavar="PATTERN", help="The text must match this regular expression as a whole."),
            option(
                "--json-schema",
                metavar="FILE|TEXT",
                help="The text must be JSON of this schema, which is a file or begins with '{'.",
            ),
        )
    ):
        decorated = decorator(decorated)
    return decorated


def read_schema(source: str) -> Any:
    """A schema from a file or a text. Raises ModelError for a missing file, InputError for what is not JSON."""
    inline = source.lstrip().startswith("{")
    try:
        return json.loads(source if inline else terminal.read_text(source, limit=LIMIT))
    except (ValueError, RecursionError) as error:
        name = "the text" if inline else f"'{source}'"
        raise InputError(f"--json-schema: expected JSON, got something else in {name}: {error}") from None


def require_matches(samples: Iterable[Completion]) -> None:
    """Raise GateFailed where a text ended before it matched what it must."""
    reasons = [str(sample.finish_reason) for sample in samples if sample.matches is False]
    if reasons:
        raise GateFailed(
            f"expected a text that matches, got one that was cut short ({', '.join(reasons)}); {advice(reasons)}"
        )


def advice(reasons: Iterable[str]) -> str:
    """What to do about texts that ended for these reasons."""
    if "dead_end" in reasons:
        return "dead_end: no token goes on from there, or the pattern is too complex; simplify it"
    return "a larger --max-tokens leaves room for the rest"
