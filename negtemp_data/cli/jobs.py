"""`negtemp jobs`: the jobs on a Ray cluster."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from negtemp_data import api
from negtemp_data.cli.groups import SuggestingGroup
from negtemp_data.cli.options import address_option, json_option, print_json, safe_text

if TYPE_CHECKING:
    from negtemp_data.cluster.jobs import Cluster, JobState

EXIT_STOPPED = 130
"""A job that was stopped, as a run that was interrupted."""

working_dir_option = click.option(
    "--working-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, exists=True),
    help="Modules and files of your own that the job needs; 64 MiB at most.",
)


def job_id_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """ID, and the cluster's address."""
    return click.argument("job_id", metavar="ID")(address_option(function))


@click.group(cls=SuggestingGroup, epilog="Example:  negtemp jobs list --address http://HOST:8265")
def command() -> None:
    """List, follow, stop and resume the jobs that `negtemp submit` has started."""


@command.command("list", epilog="Example:  negtemp jobs list --address http://HOST:8265")
@address_option
@json_option
def list_jobs(address: str | None, as_json: bool) -> None:
    """List the jobs that the cluster knows, oldest first."""
    states = api.cluster(address).jobs()
    if as_json:
        print_json([_as_json(state) for state in states])
        return
    for state in states:
        click.echo(
            f"{state.id}  {state.status:9}  {_when(state.started_at)}  {state.ticket.output}"
        )


@command.command("status", epilog="Example:  negtemp jobs status ID --address http://HOST:8265")
@job_id_argument
@json_option
def show_status(job_id: str, address: str | None, as_json: bool) -> None:
    """Show one job's state, times and output."""
    state = api.cluster(address).get(job_id)
    if as_json:
        print_json(_as_json(state))
        return
    click.echo(f"{state.id}: {state.status}")
    click.echo(f"  started  {_when(state.started_at)}")
    if state.is_over:
        click.echo(f"  ended    {_when(state.ended_at)}")
    if state.exit_code is not None:
        click.echo(f"  exit     {state.exit_code}")
    click.echo(f"  output   {state.ticket.output}")
    if state.status in {"STOPPED", "FAILED"}:
        click.echo(f"Go on with: negtemp jobs resume {state.id}")


@command.command("logs", epilog="Example:  negtemp jobs logs -f ID --address http://HOST:8265")
@job_id_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def show_logs(job_id: str, address: str | None, follow: bool) -> None:
    """Show what a job has printed; with --follow, exit with the job's own code.

    Ctrl-C ends the showing, not the job.
    """
    cluster = api.cluster(address)
    if follow:
        follow_job(cluster, job_id)
    else:
        click.echo(safe_text(cluster.logs(job_id)), nl=False)


@command.command("stop", epilog="Example:  negtemp jobs stop ID --address http://HOST:8265")
@job_id_argument
def stop_job(job_id: str, address: str | None) -> None:
    """Stop a job as Ctrl-C stops a run: what is committed stays. Waits until it has ended."""
    state = api.cluster(address).stop(job_id)
    click.echo(f"{state.id}: {state.status}")
    if state.status != "SUCCEEDED":
        click.echo(f"Go on with: negtemp jobs resume {state.id}")


@command.command("resume", epilog="Example:  negtemp jobs resume ID --address http://HOST:8265")
@job_id_argument
@working_dir_option
@click.option("-f", "--follow", is_flag=True, help="Show what the job prints until it ends.")
@json_option
def resume_job(
    job_id: str, address: str | None, working_dir: str | None, follow: bool, as_json: bool
) -> None:
    """Go on with the output of a job that has ended, as a new job on the same cluster.

    A job that ended before it had planned anything has no output yet: submit it again.
    """
    cluster = api.cluster(address)
    submission = cluster.resume(job_id, working_dir=working_dir)
    if as_json:
        print_json(
            {"id": submission.id, "address": submission.address, "output": submission.output}
        )
    else:
        click.echo(f"submitted {submission.id} to {submission.address}")
    if follow:
        follow_job(cluster, submission.id)


def follow_job(cluster: "Cluster", job_id: str) -> None:
    """Prints a job's output until it ends, and exits with its code."""
    try:
        for text in cluster.follow(job_id):
            click.echo(safe_text(text), nl=False)
    except KeyboardInterrupt:
        click.echo(f"\n{job_id} goes on; `negtemp jobs stop {job_id}` stops it.", err=True)
        raise
    state = cluster.get(job_id)
    if state.status == "SUCCEEDED":
        return
    message = state.message.strip().splitlines() or [""]
    click.echo(safe_text(f"{job_id}: {state.status}. {message[0]}"), err=True)
    click.echo(f"Go on with: negtemp jobs resume {job_id}", err=True)
    code = EXIT_STOPPED if state.status == "STOPPED" else state.exit_code or 1
    raise click.exceptions.Exit(code)


def _when(seconds: float | None) -> str:
    return "–" if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def _as_json(state: "JobState") -> dict[str, Any]:
    data = asdict(state)
    return data | {"output": state.ticket.output}
