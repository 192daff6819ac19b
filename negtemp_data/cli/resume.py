"""`negtemp resume`: goes on with what is saved in an output."""

from typing import Any

import click

from negtemp_data.cli.options import output_argument
from negtemp_data.cli.run import execute, run_options


@click.command(epilog="Example:  negtemp resume out/quickstart")
@output_argument
@run_options
def command(out: str, **options: Any) -> None:
    """Go on with the job saved in OUT; committed shards are never touched."""
    from negtemp_data.jobspec import build_job, read_yaml  # noqa: PLC0415
    from negtemp_data.storage import Output  # noqa: PLC0415

    output = Output(out)
    text = output.read_job()
    job = build_job(read_yaml(text, str(output.job_path)), str(output.job_path))
    execute(job, output, is_resumed=True, fresh=False, reuse=None, **options)
