"""`llmcli completion`: the script that teaches a shell to complete commands, flags and their values."""

from __future__ import annotations

import click

from llmcli.commands.options import define


@define(
    "completion",
    short_help="Print the completion script of a shell.",
    examples=[
        ("bash, for this session", 'eval "$(llmcli completion bash)"'),
        ("bash, for every session", "llmcli completion bash >> ~/.bashrc"),
        ("zsh", 'llmcli completion zsh > "${fpath[1]}/_llmcli"'),
        ("fish", "llmcli completion fish > ~/.config/fish/completions/llmcli.fish"),
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL on stdout."""
    from click.shell_completion import get_completion_class

    context = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    completer = kind(context.command, {}, "llmcli", "_LLMCLI_COMPLETE")
    # Not `source()`: that one starts a bash to look at its version.
    click.echo(completer.source_template % completer.source_vars())
