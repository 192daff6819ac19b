"""`negtemp resume`: goes on with what is saved in an output."""

from functools import partial
from typing import Any

import click

from negtemp_data import api
from negtemp_data.cli.options import output_argument
from negtemp_data.cli.run import execute, run_options


@click.command(epilog="Example:  negtemp resume out/quickstart")
@output_argument
@run_options
def command(out: str, **options: Any) -> None:
    """Go on with the job saved in OUT; committed shards are never touched."""
    execute(partial(api.resume, out), api.saved_job(out), out, **options)
