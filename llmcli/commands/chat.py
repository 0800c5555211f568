"""`llmcli chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import terminal
from llmcli.commands.constraining import constraint_options
from llmcli.commands.continuing import open_session
from llmcli.commands.options import (
    ModelChoice,
    cache_dtype_option,
    define,
    model_options,
    option,
    quantize_option,
    sampling_options,
    verbosity_options,
)
from llmcli.commands.shortcuts import Shortcuts, guess_options
from llmcli.errors import InputError, LlmcliError, ResourceError

if TYPE_CHECKING:
    from llmcli.conversation import Conversation

LIMIT = 64_000_000  # bytes of a saved conversation
HELP = """/help              this list
/set               show the settings
/set NAME VALUE    change one: /set temperature 0.8
/system [TEXT]     begin with this system message, or with none
/reset             forget all messages but the system's
/save FILE         write the conversation as JSON
/load FILE         go on with a saved one
Ctrl-C             stop the answer, or clear the line
Ctrl-D             end
A line that begins with a space is sent as it is."""


@define(
    "chat",
    short_help="Talk with a model in the terminal.",
    examples=[
        ("the answers of a model that was taught to chat", "llmcli chat -m Qwen/Qwen2.5-0.5B-Instruct"),
        ("with instructions, and some chance", "llmcli chat -m ./my-model --system 'Be brief.' --temperature 0.7"),
        ("go on where /save talk.json left off", "llmcli chat -m ./my-model --resume talk.json"),
    ],
)
@option("--system", metavar="TEXT", help="A message before all others that says how to answer.")
@option("--resume", metavar="FILE", help="Go on with a conversation that /save wrote; flags beat its settings.")
@option(
    "-n",
    "--max-tokens",
    aliases=["--max-new-tokens", "--n-predict"],
    type=click.IntRange(1),
    default=256,
    help="Tokens of an answer at most.",
)
@option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text; can be repeated.")
@sampling_options
@constraint_options
@guess_options
@option("-c", "--ctx-size", type=click.IntRange(2), metavar="N", help="Tokens to hold. [default: the model's context]")
@model_options
@quantize_option
@cache_dtype_option
@verbosity_options
def command(
    system: str | None,
    resume: str | None,
    ctx_size: int | None,
    choice: ModelChoice,
    shortcuts: Shortcuts,
    **settings: Any,
) -> None:
    """Answer line by line, with line editing and a history; '/help' inside lists what else there is.

    The model's own chat template makes a prompt of the messages; a model without one continues the text. Each turn
    reads only what is new. Greedy unless --temperature is above 0, like generate: the same lines, the same answers.
    """
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        raise InputError("chat: expected a terminal to read from and to write to; in a pipe use 'llmcli generate'")
    shortcuts.check(beams=1, batch_size=1, jsonl=False)
    ask = line_editor()
    settings["stop"] = list(settings["stop"])
    session = open_session(choice, 1, 1.0, ctx_size, "error", kinds=("decoder",))
    from llmcli.conversation import Conversation

    talk = Conversation(session, settings)
    shortcuts.take(session, choice)
    if resume is not None:
        context, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
        given = {name: value for name, value in settings.items() if context.get_parameter_source(name) is not default}
        load(talk, resume, given)
    if system is not None:
        talk.system(system)
    if talk.template is None:
        terminal.note(f"{session.name} has no chat template: it continues what you write")
    terminal.note("/help lists what can be done, Ctrl-D ends")
    converse(talk, ask)


def line_editor() -> Callable[[], str]:
    """What asks for a line, with editing and a history. Raises ResourceError where there is no such library."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
    except ImportError:
        raise ResourceError(
            "chat: expected prompt_toolkit for editing lines, got an installation without it: "
            "pip install 'llmcli[chat]', or use 'llmcli generate'"
        ) from None
    prompt: PromptSession[str] = PromptSession(history=InMemoryHistory())
    return lambda: prompt.prompt("> ")


def converse(talk: Conversation, ask: Callable[[], str]) -> None:
    """Answer lines until the end of the input; no Ctrl-C ends more than an answer or a line."""
    with terminal.open_output() as out, terminal.interruptible() as interrupt:
        while True:
            line = ""
            try:
                line = ask()
                if line.startswith("/"):
                    obey(talk, line)
                elif line.strip():
                    unread = talk.unread
                    for piece in talk.answer(line, lambda: interrupt.stop_requested):
                        out.write(piece)
                    out.write("\n")
                    if interrupt.stop_requested:
                        terminal.note("stopped")
                    elif talk.matches is False:
                        terminal.note("the answer was cut before it matched; /set max_tokens gives it more room")
                    if talk.unread > unread:
                        terminal.note(f"the context is full: the first {talk.unread} messages are no longer read")
            except KeyboardInterrupt:  # a second one, or one that cleared the line
                out.write("\n" if line else "")
            except EOFError:
                return
            except LlmcliError as error:
                click.echo(f"error: {error}", err=True)
            finally:
                interrupt.stop_requested = False


def obey(talk: Conversation, line: str) -> None:
    """Do what a line that begins with '/' says. Raises InputError for what is none of the list."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        click.echo(HELP, err=True)
    elif name == "/set" and not rest:
        click.echo("\n".join(f"{key} {json.dumps(value)}" for key, value in talk.settings.items()), err=True)
    elif name == "/set" and " " in rest:
        key, _, value = rest.partition(" ")
        talk.set(key.replace("-", "_"), value.strip())
    elif name == "/system":
        talk.system(rest)
    elif name == "/reset" and not rest:
        talk.reset()
    elif name == "/save" and rest:
        with terminal.open_output(rest) as file:
            file.write(terminal.to_json(talk.document()))
        terminal.note(f"wrote {rest}")
    elif name == "/load" and rest:
        load(talk, rest, {})
    else:
        raise InputError(
            f"expected one of the lines that /help lists, got '{line}'; a space before it sends it as it is"
        )


def load(talk: Conversation, path: str, given: dict[str, Any]) -> None:
    """Go on with a saved conversation. Raises ModelError for a missing file, InputError for what is none."""
    try:
        document = json.loads(terminal.read_text(path, limit=LIMIT))
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}': expected JSON, as /save writes it, got something else: {error}") from None
    if not talk.load(document, given):
        terminal.note(f"'{path}' was written with another model, {document.get('model')}")
    terminal.note(f"{len(talk.messages)} messages")
