"""docs/commands.md: the manual page of every command, made of what click knows of it.

python -m tests.commands.manual
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from llmcli.cli import ALIASES, COMMANDS, cli
from llmcli.commands.parameters import Command, Option

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
INTRODUCTION = """# Commands

Made from `llmcli COMMAND --help` by `python -m tests.commands.manual`. Every flag can be set as
`LLMCLI_<COMMAND>_<FLAG>`; streams, exit codes and signals are in [cli.md](cli.md). `--help` shows a command's page.

"""


def commands() -> Iterator[tuple[click.Command, click.Context]]:
    """Every command that has a page, in the order of the help, with its subcommands right after it."""
    root = click.Context(cli, info_name="llmcli", **cli.context_settings)

    def below(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
        yield command, context
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from below(found, click.Context(found, info_name=name, parent=context))

    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        yield from below(command, click.Context(command, info_name=name, parent=root))


def section(command: click.Command, context: click.Context) -> str:
    """Name, synopsis, description, options and examples of one command."""
    name = context.command_path
    short = COMMANDS[str(command.name)][1] if name.count(" ") == 1 else command.get_short_help_str(limit=200)
    synopsis = " ".join([name, *command.collect_usage_pieces(context)])
    aliases = [alias for alias, target in ALIASES.items() if name == f"llmcli {target}"]
    parts = [f"## {name}", short + "".join(f" Also `llmcli {alias}`." for alias in aliases), f"    {synopsis}"]
    paragraphs = (command.help or "").split("\n\n")
    parts += [" ".join(paragraph.split()) for paragraph in paragraphs]
    parts.append("\n".join(line(option, context) for option in shown(command, context)))
    if isinstance(command, Command) and command.examples:
        examples = "\n".join(f"# {purpose}\n{line}" for purpose, line in command.examples)
        parts.append(f"```sh\n{examples}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(command: click.Command, context: click.Context) -> list[click.Option]:
    """The options that the help shows."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return [option for option in options if option.get_help_record(context) is not None]


def line(option: click.Option, context: click.Context) -> str:
    """An option with its text and the other names that it answers to."""
    flags, text = option.get_help_record(context) or ("", "")
    others = sorted(option.aliases) if isinstance(option, Option) else []
    also = f" Also {', '.join(f'`{other}`' for other in others)}." if others else ""
    return f"- `{flags}`: {' '.join(text.split())}{also}"


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join(section(command, context) for command, context in commands())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
