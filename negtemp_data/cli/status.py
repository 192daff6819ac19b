"""`negtemp status`: how far a run is, from its output folder alone."""

from dataclasses import asdict

import click

from negtemp_data.cli.options import json_option, output_argument, print_json
from negtemp_data.prompts import load_plan
from negtemp_data.storage import Output, is_held, read_ledger, summarise


@click.command(epilog="Example:  negtemp status out/quickstart --json")
@output_argument
@json_option
def command(out: str, as_json: bool) -> None:
    """Show counts by arm of the committed shards, and what is left to do."""
    output = Output(out)
    output.read_fingerprint()
    plan = load_plan(output.run)
    planned = {arm: plan.n_prompts * n for arm, n in plan.samples.items()} if plan else None
    totals = summarise(read_ledger(output), planned)
    is_running = is_held(output)
    if as_json:
        shards = {"committed": totals.shards, "planned": plan.n_shards if plan else None}
        print_json({**asdict(totals), "shards": shards, "running": is_running})
        return
    from rich.console import Console  # noqa: PLC0415

    from negtemp_data.cli.display import arms_table  # noqa: PLC0415

    console = Console(highlight=False)
    of_planned = f" of {plan.n_shards}" if plan else ""
    console.print(f"{totals.shards}{of_planned} shards, {totals.generated_tokens} tokens")
    console.print(arms_table(totals))
    if is_running:
        console.print("A run is writing here.")
    elif totals.overall.not_done:
        console.print(f"Not finished: negtemp resume {out}", markup=False)
