"""`negtemp completion`: the script that makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command(epilog="Example:  negtemp completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL."""
    complete = get_completion_class(shell)
    assert complete is not None
    # The variable that click looks at is made of the program's name.
    click.echo(complete(ctx.find_root().command, {}, "negtemp", "_NEGTEMP_COMPLETE").source())
