"""`negtemp check`: integrity of an output."""

from dataclasses import asdict

import click

from negtemp_data.cli.options import json_option, output_argument, print_json
from negtemp_data.prompts import load_plan, planned_ids, read_shard
from negtemp_data.storage import Output, check_output


@click.command(epilog="Example:  negtemp check out/quickstart")
@output_argument
@json_option
def command(out: str, as_json: bool) -> None:
    """Check checksums, row accounting and duplicates; exit with 1 if anything is wrong."""
    output = Output(out)
    output.read_fingerprint()
    plan = load_plan(output.run)

    def plan_rows(shard: int) -> list[str]:
        assert plan is not None
        prompts = read_shard(output.run, shard)
        return [row.id for prompt in prompts for row in planned_ids(prompt.id, plan.samples)]

    report = check_output(output, plan_rows if plan else None, plan.n_shards if plan else None)
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
