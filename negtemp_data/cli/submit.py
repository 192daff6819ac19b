"""`negtemp submit`: starts a job on a Ray cluster."""

import json
from typing import Any

import click
from click.core import ParameterSource

from negtemp_data import api
from negtemp_data.cli.jobs import follow_job, working_dir_option
from negtemp_data.cli.options import (
    address_option,
    gather_overrides,
    job_argument,
    json_option,
    print_json,
)
from negtemp_data.errors import quote
from negtemp_data.jobspec import load_job

_OF_A_MANIFEST = {"image": "--image", "volume": "--volume"}
_NOT_OF_A_MANIFEST = {
    "address": "--address",
    "shared_paths": "--shared-path",
    "resources": "--entrypoint-resources",
    "follow": "--follow",
    "as_json": "--json",
}


def read_resources(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> dict[str, float] | None:
    """The resources of `--entrypoint-resources`, which is JSON as in `ray job submit`."""
    if value is None:
        return None
    try:
        data = json.loads(value)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not all(isinstance(v, int | float) for v in data.values()):
        raise click.BadParameter(f'{quote(value)} is not JSON such as {{"NAME": 1}}.')
    return {name: float(amount) for name, amount in data.items()}


def _check_options(*, is_manifest: bool) -> None:
    """Refuses options that would be of no effect."""
    context = click.get_current_context()
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    others = _NOT_OF_A_MANIFEST if is_manifest else _OF_A_MANIFEST
    if wrong := sorted(given & others.keys()):
        reason = "is of no effect with --manifest" if is_manifest else "needs --manifest"
        hint = "; a folder that all pods see is a --volume" if "shared_paths" in wrong else ""
        raise click.UsageError(f"{others[wrong[0]]} {reason}{hint}.")


@click.command(
    epilog="Example:  negtemp submit jobs/quickstart.yaml --address http://HOST:8265 "
    "--out /mnt/shared/quickstart --shared-path /mnt/shared --follow"
)
@job_argument
@address_option
@click.option(
    "--shared-path",
    "shared_paths",
    multiple=True,
    metavar="DIR",
    help="A folder that all machines of the cluster mount at this place. Repeatable.",
)
@click.option(
    "--pip",
    metavar="cpu|gpu|none|FILE",
    help="What the cluster installs: the package's pinned requirements for CPUs or GPUs, nothing, "
    "or a requirements file. Default: cpu or gpu, as the cluster has GPUs; with --manifest gpu, "
    "unless gpus_per_replica is 0.",
)
@working_dir_option
@click.option(
    "--entrypoint-resources",
    "resources",
    metavar="JSON",
    callback=read_resources,
    help="Custom resources of the machine that the driver runs on: '{\"NAME\": 1}'.",
)
@click.option("-f", "--follow", is_flag=True, help="Show what the job prints until it ends.")
@click.option(
    "--manifest",
    type=click.Choice(["kuberay"]),
    help="Print a manifest for Kubernetes instead of submitting anything.",
)
@click.option("--image", help="With --manifest: container image; default: Ray's own.")
@click.option(
    "--volume",
    metavar="CLAIM:PATH",
    help="With --manifest: PersistentVolumeClaim that all pods mount at PATH.",
)
@json_option
def command(
    job_file: str,
    overrides: tuple[str, ...],
    limit: int | None,
    out: str | None,
    address: str | None,
    follow: bool,
    manifest: str | None,
    image: str | None,
    volume: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run JOB on the Ray cluster whose dashboard is at --address.

    Job file, prompt files (64 MiB at most), this package and its pinned requirements travel along.
    Output, larger inputs and model folders are URIs, or lie under a --shared-path; where the
    cluster is this machine alone, any path will do. The job goes on when this machine goes away.
    """
    _check_options(is_manifest=manifest is not None)
    job = load_job(job_file, gather_overrides(overrides, limit, out))
    if manifest is not None:
        kept = {name: options[name] for name in ("pip", "working_dir")}
        click.echo(api.manifest(job, image=image, volume=volume, **kept), nl=False)
        return
    submission = api.submit(job, address, **options)
    if as_json:
        print_json(
            {"id": submission.id, "address": submission.address, "output": submission.output}
        )
    else:
        click.echo(f"submitted {submission.id} to {submission.address}")
        click.echo(f"output    {submission.output}")
        for key in submission.keys:
            click.echo(
                f"key       {key}: has to be in the environment of the cluster's machines; "
                "values do not travel"
            )
    if follow:
        follow_job(api.cluster(submission.address), submission.id)
    elif not as_json:
        click.echo(
            f"\nNext:\n  negtemp jobs logs -f {submission.id} --address {submission.address}"
        )
