"""What notebooks, pipelines and the command line call, from a run to the data set that it leaves.

`import negtemp_data` offers these names and loads this module with the first one that is used.
Knows nothing of terminals: progress goes to a `Reporter`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negtemp_data.jobspec import Job, build_job, load_job, read_yaml
from negtemp_data.pipeline.snapshot import Snapshot, read_snapshot
from negtemp_data.prompts import load_plan, planned_ids, read_shard
from negtemp_data.storage import (
    JOB_FILE,
    CheckReport,
    Output,
    Totals,
    check_output,
    is_held,
    read_ledger,
    summarise,
)

if TYPE_CHECKING:
    from negtemp_data.cluster.jobs import Cluster, Submission
    from negtemp_data.export import ExportResult
    from negtemp_data.pipeline.estimate import Estimate
    from negtemp_data.pipeline.monitor import Reporter
    from negtemp_data.pipeline.progress import Progress
    from negtemp_data.pipeline.run import RunResult

AnyPath = str | os.PathLike[str]


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        """Something that takes long begins."""

    def progress(self, progress: "Progress") -> None:
        """The counts have moved."""

    def warn(self, text: str) -> None:
        """Something is wrong, and the run goes on."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    totals: Totals
    """Rows by arm, of committed shards and of the whole plan."""
    planned_shards: int | None
    """Shards of the plan; None: it is not made yet."""
    is_running: bool
    """Whether a run holds the output's lock."""
    live: Snapshot | None
    """What this run said of itself in the last seconds; None where it has said nothing yet."""


def run(
    job: Job | AnyPath,
    *,
    address: str | None = None,
    fresh: bool = False,
    reuse: AnyPath | None = None,
    reporter: "Reporter | None" = None,
) -> "RunResult":
    """Makes the data set that `job` describes, and goes on with what it finds in the output.

    Args:
        job: A job, or the path of a job file.
        address: GCS address of a Ray cluster that this machine belongs to, or `auto`; None: a Ray
            of the run's own, which needs a process that has none.
        fresh: Delete what an earlier run left in the output.
        reuse: Older output whose rows are taken over and judged anew.
        reporter: Told of progress; None: nobody.

    Raises:
        RequestError: The request is wrong; nothing was started.
        RunError: The run stopped; `resume` goes on.
    """
    from negtemp_data.pipeline.run import RunRequest, run_job  # noqa: PLC0415

    job = as_job(job)
    old = Output(reuse) if reuse is not None else None
    request = RunRequest(job, Output(job.output.path), address, fresh, old)
    return run_job(request, reporter or Silent())


def resume(
    out: AnyPath, *, address: str | None = None, reporter: "Reporter | None" = None
) -> "RunResult":
    """Goes on with the job saved in the output `out`; arguments and errors as for `run`."""
    from negtemp_data.pipeline.run import RunRequest, resume_job  # noqa: PLC0415

    return resume_job(RunRequest(saved_job(out), Output(out), address), reporter or Silent())


def calibrate(
    job: Job | AnyPath,
    n_prompts: int,
    *,
    address: str | None = None,
    reporter: "Reporter | None" = None,
) -> "Estimate":
    """Runs a few prompts of `job` and tells from them what all take; nothing of it is kept.

    Args:
        job: A job, or the path of a job file.
        n_prompts: Prompts to run; the estimate is best where their rows fill the engine's batch.
        address: See `run`.
        reporter: Told of progress; None: nobody.

    Raises:
        RequestError: The request is wrong; nothing was started.
        RunError: The run stopped.
    """
    from negtemp_data.pipeline.calibrate import calibrate as calibrate_job  # noqa: PLC0415

    return calibrate_job(as_job(job), n_prompts, address, reporter or Silent())


def status(out: AnyPath) -> RunStatus:
    """How far the run of the output `out` is, from its folder alone.

    Raises:
        OutputError: It is no output.
    """
    output = Output(out)
    output.read_fingerprint()
    plan = load_plan(output.run)
    planned = {arm: plan.n_prompts * n for arm, n in plan.samples.items()} if plan else None
    is_running = is_held(output)
    return RunStatus(
        totals=summarise(read_ledger(output), planned),
        planned_shards=plan.n_shards if plan else None,
        is_running=is_running,
        live=live(output) if is_running else None,
    )


def live(out: AnyPath | Output) -> Snapshot | None:
    """What a run under way said of itself in the last seconds, for little: one small file is read.

    Of a run that was killed the last word counts for some seconds more; `status` knows better.
    """
    snapshot = read_snapshot(out if isinstance(out, Output) else Output(out))
    return snapshot if snapshot is not None and snapshot.is_live else None


def check(out: AnyPath) -> CheckReport:
    """Reads the output `out` whole: is every committed row there, once, unchanged, accounted for?

    Raises:
        OutputError: It is no output.
    """
    output = Output(out)
    plan = load_plan(output.run)
    if plan is None:
        return check_output(output)
    samples = plan.samples

    def plan_rows(shard: int) -> list[str]:
        prompts = read_shard(output.run, shard)
        return [row.id for prompt in prompts for row in planned_ids(prompt.id, samples)]

    return check_output(output, plan_rows, plan.n_shards)


def export_dataset(
    out: AnyPath,
    dest: AnyPath,
    format: str,
    *,
    split: str = "train=1",
    arms: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> "ExportResult":
    """Writes the committed rows of the output `out` as a trainer takes them.

    Args:
        out: The output.
        dest: Folder to make; `datasets.load_dataset` opens it.
        format: A key of `negtemp_data.export.FORMATS`.
        split: Splits by prompt, as train=0.95,test=0.05.
        arms: Arms whose rows are read; empty: all.
        on_progress: Told after each shard: rows read, and rows in all shards.
        **options: Fields of the format.

    Raises:
        OutputError: `out` is no output.
        ExportError: Nothing to export, or it can't be in this form or place; nothing was left.
        StorageError: A shard is damaged, or the disk refused; nothing was left.
    """
    from negtemp_data.export import (  # noqa: PLC0415
        ExportRequest,
        PromptSplit,
        build_format,
        export_output,
        parse_split,
    )

    request = ExportRequest(
        output=Output(out),
        dest=Path(dest).absolute(),
        format_name=format,
        format=build_format(format, saved_job(out), options),
        split=PromptSplit(parse_split(split)),
        arms=tuple(arms),
    )
    return export_output(request, on_progress or (lambda done, total: None))


def submit(
    job: Job | AnyPath,
    address: str | None = None,
    *,
    pip: str | None = None,
    shared_paths: Sequence[AnyPath] = (),
    working_dir: AnyPath | None = None,
    resources: Mapping[str, float] | None = None,
) -> "Submission":
    """Starts a job on a Ray cluster and returns at once; `Cluster` follows, stops and resumes it.

    Args:
        job: A job, or the path of a job file.
        address: The cluster's dashboard, http://HOST:8265; None: RAY_API_SERVER_ADDRESS or
            RAY_ADDRESS.
        pip: What the cluster installs: `cpu`, `gpu`, `none` or a requirements file; None: cpu or
            gpu, as the cluster has GPUs.
        shared_paths: Folders that all machines of the cluster mount at the same place.
        working_dir: Modules and files of your own that the job needs.
        resources: Custom resources of the machine that the driver runs on.

    Raises:
        RequestError: Nothing was started: the cluster can't be reached or can't see a path, or the
            same job runs or has run there.
    """
    return cluster(address).submit(
        as_job(job),
        pip=pip,
        shared_paths=[Path(path) for path in shared_paths],
        working_dir=None if working_dir is None else Path(working_dir),
        resources=resources,
    )


def manifest(
    job: Job | AnyPath,
    *,
    image: str | None = None,
    volume: str | None = None,
    pip: str | None = None,
    working_dir: AnyPath | None = None,
) -> str:
    """A KubeRay manifest that runs `job`; arguments and errors as for `write_manifest`."""
    from negtemp_data.cluster.kuberay import write_manifest  # noqa: PLC0415

    folder = None if working_dir is None else Path(working_dir)
    return write_manifest(as_job(job), image=image, volume=volume, pip=pip, working_dir=folder)


def cluster(address: str | None = None) -> "Cluster":
    """A Ray cluster, whose jobs can be listed, followed, stopped and resumed.

    Raises:
        ClusterError: Nobody answers at the address.
    """
    from negtemp_data.cluster.jobs import Cluster  # noqa: PLC0415

    return Cluster(address)


def as_job(job: Job | AnyPath) -> Job:
    """A job, loaded where it is the path of a job file."""
    return job if isinstance(job, Job) else load_job(os.fspath(job))


def saved_job(out: AnyPath) -> Job:
    """The job saved in an output.

    Raises:
        OutputError: It is no output.
    """
    output = Output(out)
    where = output.run.where(JOB_FILE)
    return build_job(read_yaml(output.read_job(), where), where)
