"""`negtemp show`: samples, with their injected tokens marked."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import click

from negtemp_data import api
from negtemp_data.cli.options import json_option, output_argument, safe_text, to_json_line
from negtemp_data.jobspec import Job
from negtemp_data.storage import Output, read_rows


@click.command(epilog="Example:  negtemp show out/quickstart --arm negative --status rejected -n 3")
@output_argument
@click.option("-n", "--rows", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--arm", help="Only samples of this arm.")
@click.option(
    "--status",
    type=click.Choice(["accepted", "rejected", "failed"]),
    help="Only samples with this verdict.",
)
@click.option("--prompt", "prompt_id", metavar="ID", help="Only samples of this prompt.")
@json_option
def command(
    out: str,
    rows: int,
    arm: str | None,
    status: str | None,
    prompt_id: str | None,
    as_json: bool,
) -> None:
    """Show samples of OUT: prompt, completion with injected tokens marked, verdict."""
    output = Output(out)
    job = api.saved_job(out)
    chosen = islice(read_rows(output, arm=arm, status=status, prompt_id=prompt_id), rows)
    if as_json:
        for row in chosen:
            click.echo(to_json_line(row))
        return
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    is_empty = True
    for row in chosen:
        is_empty = False
        _print_row(console, job, row)
    if is_empty:
        console.print("No such rows are committed.")


def pieces_of(job: Job, row: Mapping[str, Any]) -> list[str] | None:
    """Text of each token of a row; None where the model's tokenizer is not at hand."""
    from negtemp_data.engine.catalogue import local_path  # noqa: PLC0415
    from negtemp_data.engine.pieces import token_pieces  # noqa: PLC0415
    from negtemp_data.errors import ModelError  # noqa: PLC0415

    path = local_path(job.generate.model)
    try:
        return token_pieces(path, row["token_ids"] or []) if path else None
    except ModelError:
        return None


def _print_row(console: Any, job: Job, row: Mapping[str, Any]) -> None:
    from rich.text import Text  # noqa: PLC0415

    from negtemp_data.cli.display import marked_completion  # noqa: PLC0415
    from negtemp_data.prompts import request_text  # noqa: PLC0415

    score = "" if row["score"] is None else f", score {row['score']:.2f}"
    console.print(Text(f"── {safe_text(row['id'])} · {row['status']}{score}", style="bold"))
    request = request_text(row["prompt"], row["messages"])
    console.print(Text(safe_text(request[:1000]), style="dim"))
    if row["error"] is not None:
        console.print(Text(f"Error: {safe_text(row['error'])}", style="red"))
    if row["completion"] is not None:
        console.print(marked_completion(row, pieces_of(job, row)))
    failed = [check for check in row["checks"] or () if not check["passed"]]
    for check in failed:
        console.print(Text(f"failed check {check['name']}: {check['detail']}", style="red"))
    for injection in row["injections"] or ():
        console.print(
            Text(
                "  at {position}: rank {rank} of {support_size} candidates, log-probability "
                "{logprob:.2f}, T {temperature:g}".format(**injection),
                style="dim",
            )
        )
    console.print()
