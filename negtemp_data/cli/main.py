"""The `negtemp` command: loads a command's module only when it is called.

`negtemp --help` therefore imports click alone. Errors become one paragraph and an exit code here,
in one place.
"""

import importlib
import os
import sys

import click

from negtemp_data import __version__
from negtemp_data.cli.groups import SuggestingGroup
from negtemp_data.errors import NegtempError

COMMANDS = {
    "init": "Write a job file and prompts to start from.",
    "validate": "Check all that can be checked without a GPU.",
    "plan": "Show shards, prompts, schedules and estimates.",
    "run": "Make a data set, here or on a Ray cluster.",
    "resume": "Go on with an interrupted run.",
    "submit": "Run a job on a Ray cluster.",
    "jobs": "List, follow, stop and resume jobs on a Ray cluster.",
    "status": "Show how far a run is.",
    "show": "Show samples, injected tokens marked.",
    "check": "Check the integrity of an output.",
    "export": "Write a data set as a trainer takes it.",
    "lab": "Experiments: what a job's judge is worth.",
    "models": "List the built-in models.",
    "doctor": "Find out what works on this machine.",
    "schema": "Print the JSON Schema of the job file.",
    "completion": "Print what makes a shell complete commands.",
}


class LazyGroup(SuggestingGroup):
    """A group that finds each command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"negtemp_data.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NEGTEMP"},
)
@click.version_option(__version__, prog_name="negtemp")
@click.option("--debug", is_flag=True, envvar="NEGTEMP_DEBUG", help="Show tracebacks.")
def negtemp(debug: bool) -> None:
    """Judge-verified, high-variance completions from negative-temperature sampling.

    \b
    Start:    negtemp init job && negtemp run job/job.yaml
    Trouble:  negtemp doctor

    Every option has an environment variable too: NEGTEMP_SUBMIT_ADDRESS is that of `submit
    --address`. NO_COLOR is honoured.
    """  # noqa: D301 (click reads the character \b)


def main() -> None:
    """Runs the command line and exits with its code.

    0 done, 1 the run failed, 2 the request was wrong, 3 too many failed rows, 130 interrupted.
    """
    in_environment = os.environ.get("NEGTEMP_DEBUG", "").lower()
    is_debug = "--debug" in sys.argv[1:2] or in_environment in {"1", "true", "t", "yes", "y", "on"}
    try:
        # rich honours NO_COLOR by itself, click does not. Source: no-color.org.
        code = negtemp.main(
            standalone_mode=False, color=False if os.environ.get("NO_COLOR") else None
        )
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except NegtempError as error:
        if is_debug:
            raise
        # What was found in a file may hold escape sequences.
        text = "".join(char if char == "\n" or char.isprintable() else "�" for char in str(error))
        click.echo(f"Error: {text}", err=True)
        code = error.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    sys.exit(code if isinstance(code, int) else 0)
