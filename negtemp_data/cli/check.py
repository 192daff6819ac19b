"""`negtemp check`: integrity of an output."""

from dataclasses import asdict

import click

from negtemp_data import api
from negtemp_data.cli.options import json_option, output_argument, print_json


@click.command(epilog="Example:  negtemp check out/quickstart")
@output_argument
@json_option
def command(out: str, as_json: bool) -> None:
    """Check checksums, row accounting and duplicates; exit with 1 if anything is wrong."""
    report = api.check(out)
    if as_json:
        print_json(asdict(report) | {"ok": report.ok})
    else:
        for problem in report.problems:
            click.echo(f"Problem: {problem}", err=True)
        click.echo(
            f"{report.planned} planned = {report.accepted} accepted + {report.rejected} rejected "
            f"+ {report.failed} failed + {report.not_done or 0} not yet done; {report.shards} "
            f"shards, {report.rows} rows: {'all is well' if report.ok else 'see above'}."
        )
    if not report.ok:
        raise click.exceptions.Exit(1)
