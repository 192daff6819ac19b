"""The generating worker's Ray actor: a thin shell around `Worker`.

A failure that belongs to a run travels as a value, never as an exception: Ray would wrap it or
print it. A dead engine takes its process along, and the driver starts another one.
"""

import os
import pickle
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from negtemp_data.engine.adapter import resolve_adapter
from negtemp_data.engine.catalogue import folder_here
from negtemp_data.engine.engine import Engine, EngineSpec
from negtemp_data.errors import EngineDeadError, EngineStartError, NegtempError, StorageError
from negtemp_data.jobspec import Job
from negtemp_data.pipeline.board import report_pause_s, restart_pause_s
from negtemp_data.pipeline.judges import EXIT_ENGINE_DEAD, job_judge
from negtemp_data.pipeline.logs import send_output_to
from negtemp_data.pipeline.maker import Row, ShardMaker
from negtemp_data.pipeline.metrics import WorkerMetrics
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.pipeline.suspects import Care
from negtemp_data.pipeline.worker import Worker
from negtemp_data.storage import Output

_MAX_STARTS_IN_VAIN = 5
"""Starts of a replica's engine without a row, before the run ends."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a generating worker needs; picklable."""

    job: Job
    output: Output
    engine: EngineSpec
    max_replicas: int
    shards_in_flight: int
    """Shards that a worker has open at a time."""
    judges: dict[str, list[Any]]
    """Replicas of the judges that have engines of their own, by path in the job file."""
    old_rows: OldRows | None
    """Rows that need not be generated again."""


class BoardWatch:
    """The board as a worker sees it: what it has in flight, told before it is begun."""

    def __init__(self, board: Any, worker: str, metrics: WorkerMetrics) -> None:
        """Speaks for a worker."""
        self._board = board
        self._worker = worker
        self._metrics = metrics

    def begin(self, shard: int) -> Care | None:
        """See `Watch.begin`."""
        care: Care | None = ray.get(self._board.begin.remote(self._worker, shard))
        return care

    def run_group(self, row_ids: Sequence[str]) -> None:
        """See `Watch.run_group`."""
        ray.get(self._board.run_group.remote(self._worker, list(row_ids)))

    def end(self, shard: int) -> None:
        """See `Watch.end`."""
        self._board.end.remote(self._worker, shard)

    def kept(self) -> None:
        """See `Watch.kept`."""
        self._board.kept.remote()

    def generated(self, row: Row) -> None:
        """See `Watch.generated`."""
        self._metrics.generated(row)

    def made(self, row: Row) -> None:
        """See `Watch.made`."""
        self._metrics.made(row)


def _on_this_machine(spec: EngineSpec, job: Job) -> EngineSpec:
    """`spec` with the folders of this machine, which may be another than the driver's.

    Raises:
        ModelError: The model or its adapter can't be had here.
    """
    spec = replace(spec, model_path=folder_here(spec.model_path, job.generate.model))
    if spec.lora_path is not None and not os.path.isdir(spec.lora_path):
        spec = replace(spec, lora_path=resolve_adapter(str(job.generate.lora)).path)
    return spec


class GeneratorActor:
    """A worker: one engine, and the shards that the driver hands it, several at a time.

    What its methods return is b"", or a pickled NegtempError that ends the run.
    """

    def __init__(self, settings: WorkerSettings, board: Any, worker: str) -> None:
        """Does nothing yet; `worker` names the place that this actor takes, maybe after others."""
        self._settings = settings
        self._board = board
        self._worker_name = worker
        self._process = f"{ray.util.get_node_ip_address()}-{os.getpid()}"
        self._ending = threading.Lock()

    def start(self) -> bytes:
        """Starts the engine."""
        settings, output = self._settings, self._settings.output
        try:
            send_output_to(output.logs / f"worker-{self._process}.log")
            self._announce_start()
            begun = time.monotonic()
            self._engine = Engine(_on_this_machine(settings.engine, settings.job))
            judge = job_judge(settings.job, self._engine, settings.judges)
            maker = ShardMaker(settings.job, self._engine, judge)
            seconds = round(time.monotonic() - begun, 1)
            output.append_event("engine_ready", worker=self._process, seconds=seconds)
        except NegtempError as error:
            return pickle.dumps(error)
        except OSError as error:
            return pickle.dumps(EngineStartError(f"{output.logs}: {error}."))
        watch = BoardWatch(self._board, self._worker_name, WorkerMetrics(settings.job.name))
        n_threads = settings.shards_in_flight
        self._worker = Worker(settings.job, output, maker, settings.old_rows, watch, n_threads)
        self._board.engine_ready.remote(self._worker_name)
        threading.Thread(target=self._keep_reporting, name="report", daemon=True).start()
        return b""

    def make(self, shard: int) -> bytes:
        """Makes a shard and commits it."""
        try:
            self._worker.make(shard)
            ray.get(self._report())  # so that the counts are whole when the last shard is done
        except EngineDeadError as error:
            self._end_with_engine(error)
        except NegtempError as error:
            return pickle.dumps(error)
        return b""

    def _announce_start(self) -> None:
        """Notes a start; waits before one that follows others in vain, and gives up after some."""
        starts, replaced = ray.get(
            self._board.engine_starts.remote(self._worker_name, self._process)
        )
        self._settings.output.append_event(
            "engine_starts", worker=self._process, replaces=replaced, in_vain=starts - 1
        )
        in_vain = starts - self._settings.max_replicas
        if in_vain > (_MAX_STARTS_IN_VAIN - 1) * self._settings.max_replicas:
            raise EngineStartError(
                f"engines were started {starts} times without finishing a row; the run's logs, "
                f"{self._settings.output.logs}, say why they died."
            )
        time.sleep(restart_pause_s(in_vain / self._settings.max_replicas))

    def _end_with_engine(self, error: EngineDeadError) -> None:
        with self._ending:  # never left: all shards hear of the death, one tells of it
            with suppress(StorageError):
                self._settings.output.append_event(
                    "engine_died", worker=self._process, reason=str(error)
                )
            # Not an exception: Ray would keep this actor, whose engine is gone.
            os._exit(EXIT_ENGINE_DEAD)

    def _report(self) -> Any:
        work = replace(self._worker.work, steps=self._engine.steps)
        return self._board.report.remote(self._process, self._worker.counts, work)

    def _keep_reporting(self) -> None:
        while True:
            time.sleep(report_pause_s(self._settings.max_replicas))
            self._report()
