"""`negtemp status`: how far a run is, from its output folder alone."""

from dataclasses import asdict

import click

from negtemp_data import api
from negtemp_data.cli.options import json_option, output_argument, print_json


@click.command(epilog="Example:  negtemp status out/quickstart --json")
@output_argument
@json_option
def command(out: str, as_json: bool) -> None:
    """Show counts by arm of the committed shards, and what is left to do."""
    status = api.status(out)
    totals = status.totals
    if as_json:
        shards = {"committed": totals.shards, "planned": status.planned_shards}
        print_json({**asdict(totals), "shards": shards, "running": status.is_running})
        return
    from rich.console import Console  # noqa: PLC0415

    from negtemp_data.cli.display import arms_table  # noqa: PLC0415

    console = Console(highlight=False)
    of_planned = "" if status.planned_shards is None else f" of {status.planned_shards}"
    console.print(f"{totals.shards}{of_planned} shards, {totals.generated_tokens} tokens")
    console.print(arms_table(totals, console.width))
    if status.is_running:
        console.print("A run is writing here.")
    elif totals.overall.not_done:
        console.print(f"Not finished: negtemp resume {out}", markup=False)
