"""Jobs on a Ray cluster: submit, list, follow, stop, resume. Needs nothing but Ray's dashboard.

A submission's id is that of its bundle; further attempts at the same data set get `-2`, `-3` and so
on. What is needed to go on travels in Ray's metadata of the job, so any machine can do it.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negtemp_data import __version__
from negtemp_data.cluster.bundle import (
    Bundle,
    resume_command,
    run_command,
    write_bundle,
    write_code,
)
from negtemp_data.cluster.client import JobsClient, explained
from negtemp_data.cluster.pins import uv_field
from negtemp_data.cluster.visibility import Visibility, shared_folders
from negtemp_data.errors import ClusterError
from negtemp_data.jobspec import Job

_METADATA_KEY = "negtemp"

_STOP_WAIT_S = 60
"""How long a stopped driver may take to leave its output in order; Ray's default is 3."""
_POLL_S = 1.0


@dataclass(frozen=True)
class Ticket:
    """What a submission leaves with Ray for those who come later."""

    base: str
    """Id of the first submission of this data set."""
    name: str
    """The job's name."""
    output: str
    """Where the rows go, as the cluster names it."""
    version: str
    """Version of this package."""
    resources: dict[str, float]
    """What the driver's machine has to have."""


@dataclass(frozen=True)
class JobState:
    """A job as Ray sees it."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    exit_code: int | None
    """The driver's exit code, once it has ended by itself."""
    started_at: float | None
    """Seconds since the epoch."""
    ended_at: float | None
    ticket: Ticket

    @property
    def is_over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}


@dataclass(frozen=True)
class Submission:
    """A job that a cluster has accepted."""

    id: str
    address: str
    output: str
    keys: tuple[str, ...] = ()
    """Environment variables that the cluster's machines have to have."""


class Cluster:
    """A Ray cluster, by the address of its dashboard."""

    def __init__(self, address: str | None = None) -> None:
        """Connects.

        Args:
            address: http://HOST:8265; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

        Raises:
            ClusterError: Nobody answers there.
        """
        self._client = JobsClient(address)
        self.address = str(self._client.get_address())

    def submit(
        self,
        job: Job,
        *,
        pip: str | None = None,
        shared_paths: Sequence[str | Path] = (),
        working_dir: str | Path | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> Submission:
        """Starts a job.

        Args:
            job: The job; its prompt files travel with it.
            pip: What the cluster installs for it: `cpu`, `gpu`, `none` or a requirements file;
                None: cpu or gpu, as the cluster has GPUs.
            shared_paths: Folders that all machines mount at the same place.
            working_dir: Modules and files of your own that the job needs.
            resources: Custom resources of the machine that the driver runs on.

        Raises:
            RequestError: Nothing was started.
        """
        visibility = Visibility(self._client.is_this_machine(), shared_folders(shared_paths))
        with tempfile.TemporaryDirectory(prefix="negtemp-") as name:
            bundle = write_bundle(job, Path(name), visibility, working_dir)
            earlier = self._attempts(bundle.id)
            _refuse_twice(earlier, bundle)
            ticket = Ticket(
                bundle.id, job.name, bundle.job.output.path, __version__, dict(resources or {})
            )
            uv = uv_field(pip or self._variant(job))
            settings = visibility.model_cache
            id_ = self._start(ticket, len(earlier), Path(name), run_command(), uv, settings)
        return Submission(id_, self.address, ticket.output, bundle.keys)

    def jobs(self) -> list[JobState]:
        """The jobs that this package has submitted, oldest first."""
        with explained(self.address):
            details = self._client.list_jobs()
        found = [state for each in details if (state := _state(each)) is not None]
        return sorted(found, key=lambda state: state.started_at or 0.0)

    def get(self, job_id: str) -> JobState:
        """One job.

        Raises:
            ClusterError: There is none of this id.
        """
        for state in self.jobs():
            if state.id == job_id:
                return state
        raise ClusterError(
            f"the Ray cluster at {self.address} knows no negtemp job {job_id!r}; `negtemp jobs "
            "list` shows those that it knows."
        )

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        self.get(job_id)
        with explained(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What a job prints, as it prints it, until it ends.

        Asks again and again rather than hold a connection: that survives a dashboard that goes
        away for a moment, and a driver's machine that never comes back.
        """
        shown = 0
        while True:
            state = self.get(job_id)
            try:
                with explained(self.address):
                    text = str(self._client.get_job_logs(job_id))
            except ClusterError:  # those of a machine that is gone; its state says so in the end
                text = ""
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            if state.is_over:
                return
            time.sleep(_POLL_S)

    def stop(self, job_id: str) -> JobState:
        """Stops a job and waits until it has ended; what it has committed stays."""
        if not self.get(job_id).is_over:
            with explained(self.address):
                self._client.stop_job(job_id)
        end = time.monotonic() + _STOP_WAIT_S + 30
        while not self.get(job_id).is_over and time.monotonic() < end:
            time.sleep(_POLL_S)
        return self.get(job_id)

    def resume(self, job_id: str, *, working_dir: str | Path | None = None) -> Submission:
        """Goes on with the output of a job that has ended, as a new job.

        Args:
            job_id: Any of the output's jobs.
            working_dir: As for `submit`, where the job needed one.

        Raises:
            ClusterError: There is no such job, or one of its output's jobs still runs.
        """
        ticket = self.get(job_id).ticket
        earlier = self._attempts(ticket.base)
        for state in earlier:
            if not state.is_over:
                raise ClusterError(_running(state))
        with explained(self.address):
            details = self._client.get_job_info(job_id)
        runtime_env = details.runtime_env or {}
        with tempfile.TemporaryDirectory(prefix="negtemp-") as name:
            write_code(Path(name), working_dir)
            command = resume_command(ticket.output)
            uv, settings = runtime_env.get("uv"), runtime_env.get("env_vars", {})
            id_ = self._start(ticket, len(earlier), Path(name), command, uv, settings)
        return Submission(id_, self.address, ticket.output)

    def _attempts(self, base: str) -> list[JobState]:
        return [state for state in self.jobs() if state.ticket.base == base]

    def _variant(self, job: Job) -> str:
        """The pins that fit what `gpus_per_replica` will find: `auto` looks at the cluster, too."""
        gpus = job.generate.gpus_per_replica
        if gpus == "auto":
            gpus = sum(node.gpus for node in self._client.nodes())
        return "gpu" if gpus else "cpu"

    def _start(
        self,
        ticket: Ticket,
        n_earlier: int,
        folder: Path,
        command: str,
        uv: Any | None,
        settings: Mapping[str, str],
    ) -> str:
        runtime_env: dict[str, Any] = {
            "working_dir": str(folder),
            "env_vars": {**settings, "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
        }
        if uv is not None:
            runtime_env["uv"] = uv
        id_ = ticket.base if n_earlier == 0 else f"{ticket.base}-{n_earlier + 1}"
        with explained(self.address):
            return str(
                self._client.submit_job(
                    entrypoint=command,
                    submission_id=id_,
                    runtime_env=runtime_env,
                    metadata={_METADATA_KEY: json.dumps(asdict(ticket))},
                    entrypoint_resources=ticket.resources or None,
                )
            )


def _refuse_twice(earlier: Sequence[JobState], bundle: Bundle) -> None:
    """Refuses to start what runs or is done; what was stopped or has failed goes on.

    Raises:
        ClusterError: Says what to do instead.
    """
    for state in earlier:
        if not state.is_over:
            raise ClusterError(_running(state))
        if state.status == "SUCCEEDED":
            raise ClusterError(
                f"job {bundle.job.name}: {state.id} has made this data set already, in "
                f"{state.ticket.output}; change the job or its output.path, or look at it again "
                f"with `negtemp jobs resume {state.id}`."
            )


def _running(state: JobState) -> str:
    return (
        f"job {state.ticket.name}: {state.id} is {state.status.lower()} already; follow it with "
        f"`negtemp jobs logs -f {state.id}`, or stop it first."
    )


def _state(details: Any) -> JobState | None:
    """None: the job is not one of ours."""
    try:
        ticket = Ticket(**json.loads((details.metadata or {})[_METADATA_KEY]))
    except (KeyError, ValueError, TypeError):
        return None
    return JobState(
        id=str(details.submission_id),
        status=str(details.status.value),
        message=details.message or "",
        exit_code=details.driver_exit_code,
        started_at=details.start_time / 1000 if details.start_time else None,
        ended_at=details.end_time / 1000 if details.end_time else None,
        ticket=ticket,
    )
