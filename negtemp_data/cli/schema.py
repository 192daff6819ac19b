"""`negtemp schema`: the JSON Schema of the job file."""

from pathlib import Path

import click

from negtemp_data.jobspec.schema import is_fresh, job_schema


@click.command(epilog="Example:  negtemp schema > job.schema.json")
@click.option(
    "--check",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Exit with 1 if this file is not the present schema.",
)
def command(path: Path | None) -> None:
    """Print the JSON Schema of the job file, for editors and other tools."""
    if path is None:
        click.echo(job_schema(), nl=False)
    elif not is_fresh(path):
        raise click.ClickException(f"{path} is stale: `negtemp schema > {path}` renews it.")
