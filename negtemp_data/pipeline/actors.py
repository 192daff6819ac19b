"""Thin Ray shells around plain classes: the generating worker, the committing task, the board.

A failure that belongs to a run travels as a value, never as an exception: Ray would wrap it, retry
it or print it. A dead engine takes its process along, which is what makes Ray replace it.
"""

import os
import pickle
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from negtemp_data.engine.adapter import resolve_adapter
from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.engine.engine import Engine, EngineSpec
from negtemp_data.errors import EngineDeadError, EngineStartError, NegtempError
from negtemp_data.jobspec import Job
from negtemp_data.pipeline.judges import EXIT_ENGINE_DEAD, job_judge
from negtemp_data.pipeline.logs import send_output_to
from negtemp_data.pipeline.maker import Row, ShardMaker
from negtemp_data.pipeline.progress import RowCounts, Tally
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.prompts import prompts_per_shard, read_shard
from negtemp_data.storage import (
    Output,
    build_shard,
    commit_shard,
    describe_shard,
    encode_shard,
    write_entry,
)

_MAX_STARTS_WITHOUT_COMMIT = 5
_REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class WorkerSettings:
    """What a generating worker needs; picklable."""

    job: Job
    output: Output
    engine: EngineSpec
    replicas: int
    judges: dict[str, list[Any]]
    """Replicas of the judges that have engines of their own, by path in the job file."""
    old_rows: OldRows | None
    """Rows that need not be generated again."""


@ray.remote(num_cpus=0)
class Board:
    """Where workers report to and the driver looks."""

    def __init__(self) -> None:
        self._tally = Tally()

    def engine_starts(self) -> int:
        """Notes that a worker starts an engine; returns starts since the last commit."""
        self._tally.starts_since_commit += 1
        return self._tally.starts_since_commit

    def engine_ready(self) -> None:
        """Notes that an engine takes requests."""
        self._tally.ready_at = self._tally.ready_at or time.time()

    def report(self, worker: str, counts: RowCounts) -> None:
        """Replaces the counts of a worker."""
        self._tally.counts[worker] = counts

    def committed(self) -> None:
        """Notes that the run moves on."""
        self._tally.starts_since_commit = 0

    def read(self) -> Tally:
        """All that is known."""
        return self._tally


def _on_this_machine(spec: EngineSpec, job: Job) -> EngineSpec:
    """`spec` with the folders of this machine, which may be another than the driver's.

    Raises:
        ModelError: The model or its adapter can't be had here.
    """
    if not os.path.isdir(spec.model_path):
        spec = replace(spec, model_path=resolve_model(job.generate.model).path)
    if spec.lora_path is not None and not os.path.isdir(spec.lora_path):
        spec = replace(spec, lora_path=resolve_adapter(str(job.generate.lora)).path)
    return spec


class GenerateShard:
    """A worker: one engine, and the shards that Ray Data hands it, several at a time."""

    def __init__(self, settings: WorkerSettings, board: Any) -> None:
        """Starts the engine; a failure to do so is kept, and told by the first call."""
        self._settings = settings
        self._board = board
        self._name = f"{ray.util.get_node_ip_address()}-{os.getpid()}"
        self._counts = RowCounts()
        self._counts_lock = threading.Lock()
        self._failure: NegtempError | None = None
        try:
            settings.output.logs.mkdir(parents=True, exist_ok=True)
            send_output_to(settings.output.logs / f"worker-{self._name}.log")
            self._check_restarts()
            engine = Engine(_on_this_machine(settings.engine, settings.job))
            judge = job_judge(settings.job, engine, settings.judges)
            self._maker = ShardMaker(settings.job, engine, judge)
        except NegtempError as error:
            self._failure = error
            return
        except OSError as error:
            self._failure = EngineStartError(f"{settings.output.logs}: {error}.")
            return
        board.engine_ready.remote()
        threading.Thread(target=self._report, daemon=True).start()

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Makes a shard: `{shard}` in, `{shard, table, failure}` out."""
        if self._failure is not None:
            return _failed(task, self._failure)
        begun = time.monotonic()
        try:
            rows = self._make(task["shard"])
            table = build_shard(
                task["shard"], rows, self._settings.job.output.keep, time.monotonic() - begun
            )
        except EngineDeadError as error:
            self._settings.output.append_event("engine_died", worker=self._name, reason=str(error))
            # Not an exception: Ray would keep this actor, whose engine is gone.
            os._exit(EXIT_ENGINE_DEAD)
        except NegtempError as error:
            return _failed(task, error)
        return {"shard": task["shard"], "table": encode_shard(table), "failure": b""}

    def _make(self, shard: int) -> list[Row]:
        job, old_rows = self._settings.job, self._settings.old_rows
        prompts = read_shard(self._settings.output.run, shard)
        first = shard * prompts_per_shard(job)
        made = {} if old_rows is None else old_rows.of(first, prompts)
        return self._maker.make(prompts, self._count, made)

    def _check_restarts(self) -> None:
        limit = _MAX_STARTS_WITHOUT_COMMIT * self._settings.replicas
        if ray.get(self._board.engine_starts.remote()) > limit:
            raise EngineStartError(
                f"engines were started {limit} times without finishing a shard; the run's logs, "
                f"{self._settings.output.logs}, say why they died."
            )

    def _count(self, row: Row, n_tokens: int) -> None:
        with self._counts_lock:
            self._counts.add_row(row, n_tokens)

    def _report(self) -> None:
        while True:
            time.sleep(_REPORT_EVERY_S)
            self._board.report.remote(self._name, self._counts)


def commit(made: dict[str, Any], output: Output) -> dict[str, Any]:
    """Commits a shard: `{shard, table, failure}` in, `{shard, failure}` out."""
    if made["failure"]:
        return {"shard": made["shard"], "failure": made["failure"]}
    try:
        with pa.ipc.open_stream(made["table"]) as reader:
            commit_shard(output, made["shard"], reader.read_all())
        write_entry(output, describe_shard(output, made["shard"]))
    except NegtempError as error:
        return {"shard": made["shard"], "failure": pickle.dumps(error)}
    return {"shard": made["shard"], "failure": b""}


def _failed(task: dict[str, Any], error: NegtempError) -> dict[str, Any]:
    return {"shard": task["shard"], "table": b"", "failure": pickle.dumps(error)}
