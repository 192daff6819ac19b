"""The workers of a run: shards' numbers go out to them, and come back when they are committed.

Several shards are in flight on each worker, so that its engine's batch stays full across their
borders; rows never pass through Ray. Workers judge what they make: on their own engine with
`judge.model: same`, else on the judge's replicas, which work while generation goes on.

Plain actors and their futures instead of a library's scheduling loop: where an engine fills all
cores, it waits for each other process that wakes up.
"""

import pickle
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from negtemp_data.engine.adapter import Adapter
from negtemp_data.engine.engine import EngineSpec
from negtemp_data.errors import RunError
from negtemp_data.jobspec import Job, count_gpus
from negtemp_data.pipeline.actors import GeneratorActor, WorkerSettings
from negtemp_data.pipeline.board import Board
from negtemp_data.pipeline.dispatch import (
    LONGEST_WAIT_S,
    Dispatcher,
    NoWorkersError,
    Worker,
    WorkerDiedError,
)
from negtemp_data.pipeline.judges import judge_pools, lost_judge, start_pools
from negtemp_data.pipeline.progress import Tally
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.prompts import prompts_per_shard
from negtemp_data.storage import Output

_ROWS_IN_FLIGHT = 1024
"""Rows that a worker has open at least: more than an engine's batch, so that it never runs dry."""

_SHARDS_IN_FLIGHT = range(4, 65)
"""Fewest and most shards that a worker has open at a time."""

_WORKER_CPUS = 0.5
"""CPU slots, which Ray only counts."""

_DEATHS = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)
"""How Ray says that a process is gone, or out of reach."""


@dataclass(frozen=True)
class Inputs:
    """What a run has found on this machine."""

    model_path: str
    """Folder of the generator."""
    adapter: Adapter | None
    """Its LoRA adapter."""
    judge_paths: Mapping[str, str]
    """Folders of the models of judges with engines of their own, by the judge's path in the job
    file."""
    old_rows: OldRows | None
    """Rows that need not be generated again."""


class WorkerPool:
    """The workers of a run, each one with an engine; those that die are replaced."""

    def __init__(self, job: Job, output: Output, inputs: Inputs) -> None:
        """Sizes the workers for the cluster that is connected, and starts the judges' replicas.

        Raises:
            RunError: The cluster has not GPUs enough.
        """
        resources = ray.cluster_resources()
        has_gpus = bool(resources.get("GPU"))
        self._gpus = count_gpus(job.generate.gpus_per_replica, job.generate.engine, has_gpus)
        self._replicas = job.generate.replica_range
        # Beside the driver: what it knows must not go away with a worker's machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here)
        self._board: Any = board.remote()
        adapter = inputs.adapter
        pools = judge_pools(job, inputs.judge_paths, has_gpus)
        self._judge_pools = set(pools.values())
        n_engines = self._replicas.max + sum(pool.replicas for pool in self._judge_pools)
        self._check_gpus(resources.get("GPU", 0.0))
        self._settings = WorkerSettings(
            job=job,
            output=output,
            engine=EngineSpec(
                model_path=inputs.model_path,
                arguments={**(adapter.engine_arguments if adapter else {}), **job.generate.engine},
                is_cpu=not self._gpus,
                replicas=n_engines,
                lora_path=adapter.path if adapter else None,
            ),
            max_replicas=self._replicas.max,
            shards_in_flight=_shards_in_flight(job),
            judges=start_pools(job, output, pools, n_engines, self._board),
            old_rows=inputs.old_rows,
        )
        self._actor = ray.remote(GeneratorActor).options(
            num_cpus=min(_WORKER_CPUS, resources.get("CPU", 1.0) / self._replicas.max),
            num_gpus=self._gpus,
            max_concurrency=self._settings.shards_in_flight,
            scheduling_strategy="SPREAD",
        )

    def _check_gpus(self, available: float) -> None:
        """Replicas that never find a place would keep the others waiting without a word."""
        judges = sum(pool.replicas * pool.gpus for pool in self._judge_pools)
        needed = self._gpus * self._replicas.min + judges
        if needed > available:
            raise RunError(
                f"the generator's and the judges' replicas need {needed:g} GPUs together, and the "
                f"cluster has {available:g}; lower replicas or gpus_per_replica, or add machines."
            )

    def read_board(self) -> Tally:
        """What the workers have reported."""
        tally: Tally = ray.get(self._board.read.remote())
        return tally

    def run(self, shards: Sequence[int]) -> Generator[int]:
        """Makes and commits `shards`; yields each one's number once it is committed.

        Raises:
            NegtempError: What stopped a shard.
        """
        # The first worker that is ready must not take what the others could make.
        share = -(-len(shards) // self._replicas.min)
        dispatcher = Dispatcher(self, shards, min(share, self._settings.shards_in_flight))
        try:
            # Those that find no room wait for it, and start on a machine that joins.
            for shard in dispatcher.run(min(self._replicas.max, len(shards))):
                self._board.committed.remote(shard)
                yield shard
        except (NoWorkersError, RayError) as error:
            raise RunError(
                f"the run has stopped: {_reason(error)}; `negtemp resume "
                f"{self._settings.output.root}` goes on with what there is."
            ) from error

    def new_worker(self, name: str) -> Worker:
        """See `dispatch.Pool`."""
        return _RayWorker(name, self._actor.remote(self._settings, self._board, name))

    def note_death(self, name: str) -> None:
        """See `dispatch.Pool`."""
        ray.get(self._board.died.remote(name))

    def is_starting(self) -> bool:
        """See `dispatch.Pool`."""
        return bool(self.read_board().starting)

    def lost_helper(self) -> str | None:
        """See `dispatch.Pool`: a judge's engines."""
        return lost_judge(self._judge_pools, self.read_board(), time.monotonic() - LONGEST_WAIT_S)


class _RayWorker:
    """A worker's actor."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    def start(self) -> "Future[None]":
        return _told(self._actor.start.remote())

    def make(self, shard: int) -> "Future[None]":
        return _told(self._actor.make.remote(shard))

    def kill(self) -> None:
        ray.kill(self._actor)


def _reason(error: Exception) -> str:
    # Of an exception in an actor the first line only says where.
    cause = error.cause if isinstance(error, RayTaskError) else error
    first_line = str(cause).strip().partition("\n")[0].removesuffix(".")
    where = "" if cause is error else f"a worker failed, {type(cause).__name__}: "
    return where + first_line


def _told(answer: Any) -> "Future[None]":
    """What an actor's answer tells: nothing, a failure as bytes, or a death."""
    told: Future[None] = Future()

    def finish(done: "Future[bytes]") -> None:
        error = done.exception()
        if isinstance(error, _DEATHS) and not getattr(error, "actor_init_failed", False):
            told.set_exception(WorkerDiedError(str(error).strip().splitlines()[0]))
        elif error is not None:
            told.set_exception(error)
        elif failure := done.result():
            told.set_exception(pickle.loads(failure))
        else:
            told.set_result(None)

    answer.future().add_done_callback(finish)
    return told


def _shards_in_flight(job: Job) -> int:
    rows = prompts_per_shard(job) * job.samples_per_prompt
    fewest, most = _SHARDS_IN_FLIGHT[0], _SHARDS_IN_FLIGHT[-1]
    return min(most, max(fewest, -(-_ROWS_IN_FLIGHT // rows)))
