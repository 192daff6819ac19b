"""`negtemp doctor`: what works on this machine, and how to get the rest."""

import os

import click

from negtemp_data.cli.options import json_option, print_json, safe_text


@click.command(
    epilog="Example:  negtemp doctor jobs/quickstart.yaml --address http://HOST:8265 --json"
)
@click.argument("job_file", metavar="[JOB]", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--address",
    metavar="URL",
    help="Dashboard of a Ray cluster, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS, if set.",
)
@json_option
def command(job_file: str | None, address: str | None, as_json: bool) -> None:
    """Check Python, vLLM, Ray, GPUs, models and disk; exit with 1 if something is missing.

    With JOB its models and its output are checked too, and the Ray cluster where an address is
    given. Each line is ok, a warning or a problem, with the command that mends it.
    """
    from negtemp_data.cli.cluster_findings import cluster_findings  # noqa: PLC0415
    from negtemp_data.cli.findings import machine_findings  # noqa: PLC0415
    from negtemp_data.cli.job_findings import job_findings  # noqa: PLC0415
    from negtemp_data.jobspec import load_job  # noqa: PLC0415

    job = None if job_file is None else load_job(job_file)
    findings = [*machine_findings()]
    if job is not None:
        findings += job_findings(job)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address:
        findings += cluster_findings(address)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        colours = {"ok": "green", "warning": "yellow", "problem": "red"}
        for finding in findings:
            state = click.style(f"{finding.state:8}", fg=colours[finding.state])
            click.echo(f"{state} {safe_text(finding.what)}")
            if finding.mend:
                click.echo(f"         mend: {safe_text(finding.mend)}")
    if any(finding.state == "problem" for finding in findings):
        raise click.exceptions.Exit(1)
