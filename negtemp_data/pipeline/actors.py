"""The generating worker's Ray actor: a thin shell around `Worker`.

A failure that belongs to a run travels as a value, never as an exception: Ray would wrap it, retry
it or print it. A dead engine takes its process along, which is what makes Ray replace it.
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
from negtemp_data.pipeline.judges import EXIT_ENGINE_DEAD, job_judge
from negtemp_data.pipeline.logs import send_output_to
from negtemp_data.pipeline.maker import Row, ShardMaker
from negtemp_data.pipeline.metrics import WorkerMetrics
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.pipeline.suspects import Care
from negtemp_data.pipeline.worker import Worker
from negtemp_data.storage import Output

_MAX_STARTS_IN_VAIN = 5
_LONGEST_PAUSE_S = 30.0
_REPORT_EVERY_S = 0.5
_REPORTS_PER_S = 200
"""Most reports of all workers together: a seventh of what the board took when it was measured."""


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

    def __init__(self, board: Any, metrics: WorkerMetrics) -> None:
        """Speaks for the actor that it is made in."""
        self._board = board
        self._metrics = metrics
        # The same for all incarnations of an actor.
        self.worker = str(ray.get_runtime_context().get_actor_id())

    def begin(self, shard: int) -> Care | None:
        """See `Watch.begin`."""
        care: Care | None = ray.get(self._board.begin.remote(self.worker, shard))
        return care

    def run_group(self, row_ids: Sequence[str]) -> None:
        """See `Watch.run_group`."""
        ray.get(self._board.run_group.remote(self.worker, list(row_ids)))

    def end(self, shard: int) -> None:
        """See `Watch.end`."""
        self._board.end.remote(self.worker, shard)

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


class GenerateShard:
    """A worker: one engine, and the shards that Ray Data hands it, several at a time."""

    def __init__(self, settings: WorkerSettings, board: Any) -> None:
        """Starts the engine; a failure to do so is kept, and told by the first call."""
        self._settings = settings
        self._board = board
        self._name = f"{ray.util.get_node_ip_address()}-{os.getpid()}"
        self._failure: NegtempError | None = None
        self._ending = threading.Lock()
        output = settings.output
        watch = BoardWatch(board, WorkerMetrics(settings.job.name))
        self._actor = watch.worker
        try:
            send_output_to(output.logs / f"worker-{self._name}.log")
            self._announce_start()
            begun = time.monotonic()
            self._engine = Engine(_on_this_machine(settings.engine, settings.job))
            judge = job_judge(settings.job, self._engine, settings.judges)
            maker = ShardMaker(settings.job, self._engine, judge)
            seconds = round(time.monotonic() - begun, 1)
            output.append_event("engine_ready", worker=self._name, seconds=seconds)
        except NegtempError as error:
            self._failure = error
            return
        except OSError as error:
            self._failure = EngineStartError(f"{output.logs}: {error}.")
            return
        self._worker = Worker(
            settings.job, output, maker, settings.old_rows, watch, settings.shards_in_flight
        )
        board.engine_ready.remote(self._actor)
        threading.Thread(target=self._keep_reporting, name="report", daemon=True).start()

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Makes a shard: `{shard}` in, `{shard, failure}` out."""
        failure = b""
        try:
            if self._failure is not None:
                raise self._failure
            self._worker.make(task["shard"])
            ray.get(self._report())  # so that the counts are whole when the last shard is done
        except EngineDeadError as error:
            self._end_with_engine(error)
        except NegtempError as error:
            failure = pickle.dumps(error)
        return {"shard": task["shard"], "failure": failure}

    def _announce_start(self) -> None:
        """Notes a start; waits before one that follows others in vain, and gives up after some."""
        self._board.join.remote(self._actor, ray.get_runtime_context().current_actor)
        starts, replaced = ray.get(self._board.engine_starts.remote(self._actor, self._name))
        self._settings.output.append_event(
            "engine_starts", worker=self._name, replaces=replaced, in_vain=starts - 1
        )
        in_vain = starts - self._settings.max_replicas
        if in_vain > (_MAX_STARTS_IN_VAIN - 1) * self._settings.max_replicas:
            raise EngineStartError(
                f"engines were started {starts} times without finishing a row; the run's logs, "
                f"{self._settings.output.logs}, say why they died."
            )
        if in_vain > 0:
            time.sleep(min(_LONGEST_PAUSE_S, 2.0 ** (in_vain / self._settings.max_replicas)))

    def _end_with_engine(self, error: EngineDeadError) -> None:
        with self._ending:  # never left: all shards hear of the death, one tells of it
            with suppress(StorageError):
                self._settings.output.append_event(
                    "engine_died", worker=self._name, reason=str(error)
                )
            ray.get(self._board.engine_died.remote(self._actor))
            # Not an exception: Ray would keep this actor, whose engine is gone.
            os._exit(EXIT_ENGINE_DEAD)

    def _report(self) -> Any:
        work = replace(self._worker.work, steps=self._engine.steps)
        return self._board.report.remote(self._name, self._worker.counts, work)

    def _keep_reporting(self) -> None:
        pause_s = max(_REPORT_EVERY_S, self._settings.max_replicas / _REPORTS_PER_S)
        while True:
            time.sleep(pause_s)
            self._report()
