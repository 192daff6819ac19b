"""`negtemp status`: how far a run is, from its output folder alone."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from negtemp_data import api
from negtemp_data.cli.options import json_option, output_argument, print_json
from negtemp_data.storage import Output

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    epilog="Example:  negtemp status out/quickstart --json\n\n"
    "          negtemp status out/quickstart --watch"
)
@output_argument
@click.option("--watch", is_flag=True, help="Go on showing it until the run ends.")
@json_option
def command(out: str, watch: bool, as_json: bool) -> None:
    """Show counts by arm of the committed shards, what is left to do, and how fast a run goes on.

    Works on any machine that sees the output. Watching ends with 0 when all rows are made, and with
    1 when nobody makes the rest.
    """
    if watch and as_json:
        raise click.UsageError("--watch shows what changes, --json one moment; give one of them.")
    status = api.status(out)
    if as_json:
        print_json(_as_json(status))
        return
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    if watch:
        from negtemp_data.cli.watch import watch_run  # noqa: PLC0415

        watch_run(Output(out), console)
        status = api.status(out)
    show_status(out, status, console)
    if watch and status.totals.overall.not_done:
        raise click.exceptions.Exit(1)


def show_status(out: str, status: api.RunStatus, console: "Console") -> None:
    """Counts of what is committed, and what a run under way says."""
    from rich.text import Text  # noqa: PLC0415

    from negtemp_data.cli.display import arms_table, describe_live  # noqa: PLC0415
    from negtemp_data.cli.watch import SILENT  # noqa: PLC0415

    totals = status.totals
    of_planned = "" if status.planned_shards is None else f" of {status.planned_shards}"
    console.print(f"{totals.shards}{of_planned} shards, {totals.generated_tokens} tokens")
    console.print(arms_table(totals, console.width))
    if status.live is not None:
        console.print(Text(f"A run is writing here: {describe_live(status.live)}"))
    elif status.is_running:
        console.print(SILENT)
    elif totals.overall.not_done or status.planned_shards is None:
        console.print(
            f"Not finished, and nobody is writing here: negtemp resume {out}", markup=False
        )


def _as_json(status: api.RunStatus) -> dict[str, Any]:
    totals = asdict(status.totals)
    for arm, rows in status.totals.arms.items():
        totals["arms"][arm]["acceptance"] = rows.acceptance
    return totals | {
        "shards": {"committed": status.totals.shards, "planned": status.planned_shards},
        "running": status.is_running,
        "live": asdict(status.live) if status.live is not None else None,
    }
