"""The Ray Data graph: shard numbers → generating workers → commits.

A shard travels as one row, so Ray never splits or merges it; several are in flight on each worker,
so its engine's batch stays full across their borders. Workers judge what they make: on their own
engine with `judge.model: same`, else on the judge's replicas, which work while generation goes on.
"""

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.data import ActorPoolStrategy, DataContext

from negtemp_data.engine.adapter import Adapter
from negtemp_data.engine.engine import EngineSpec
from negtemp_data.errors import NegtempError, RunError
from negtemp_data.jobspec import Job
from negtemp_data.pipeline.actors import Board, GenerateShard, WorkerSettings, commit
from negtemp_data.pipeline.judges import JudgePool, judge_pools, start_pools
from negtemp_data.pipeline.progress import Tally
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.storage import Output

_SHARDS_IN_FLIGHT = 4
"""Shards that a worker has open at a time."""

_WORKER_CPUS = 0.5
_COMMIT_CPUS = 0.1
"""CPU slots, which Ray only counts. All stages together must stay below what the machine has, or
Ray Data stands still without a word."""

_OBJECT_STORE_BYTES = 512 << 20
"""For shards on their way to the commit, on a Ray that the run starts itself."""


@contextmanager
def ray_session(address: str | None, log: Path) -> Iterator[None]:
    """A local Ray that ends with the block, or a connection to the cluster at `address`.

    Raises:
        RunError: Ray does not start, or the cluster does not answer.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # ray raises ConnectionError, ValueError, RuntimeError, …
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise RunError(f"{where} can't be used: {error}; see {log}.") from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler ends the process on the spot; a run has to say how to go on.
        signal.signal(signal.SIGTERM, on_sigterm)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    try:
        yield
    finally:
        ray.shutdown()


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


class ShardGraph:
    """The graph over the shards that are still to be made."""

    def __init__(self, job: Job, output: Output, inputs: Inputs) -> None:
        """Sizes the stages for the cluster that is connected, and starts the judges' replicas.

        Raises:
            RunError: The cluster has not GPUs enough.
        """
        resources = ray.cluster_resources()
        self._has_gpus = bool(resources.get("GPU"))
        self._gpus = self._gpus_of(job.generate.gpus_per_replica)
        self._replicas = job.generate.replicas
        cpus = resources.get("CPU", 1.0)
        self._worker_cpus = min(_WORKER_CPUS, 0.8 * cpus / self._replicas)
        self._board = Board.remote()  # type: ignore[attr-defined]
        adapter = inputs.adapter
        pools = judge_pools(job, inputs.judge_paths, self._gpus_of)
        distinct = set(pools.values())
        n_engines = self._replicas + sum(pool.replicas for pool in distinct)
        self._check_gpus(distinct, resources.get("GPU", 0.0))
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
            replicas=self._replicas,
            judges=start_pools(pools, n_engines, output),
            old_rows=inputs.old_rows,
        )

    def _gpus_of(self, gpus: float | str) -> float:
        return float(self._has_gpus) if isinstance(gpus, str) else gpus

    def _check_gpus(self, pools: Iterable[JudgePool], available: float) -> None:
        """Replicas that never find a place would keep the others waiting without a word."""
        needed = self._gpus * self._replicas + sum(pool.replicas * pool.gpus for pool in pools)
        if needed > available:
            raise RunError(
                f"the generator's and the judges' replicas need {needed:g} GPUs together, and the "
                f"cluster has {available:g}; lower replicas or gpus_per_replica, or add machines."
            )

    def read_board(self) -> Tally:
        """What the workers have reported."""
        tally: Tally = ray.get(self._board.read.remote())
        return tally

    def run(self, shards: Sequence[int]) -> Iterator[int]:
        """Makes and commits `shards`; yields each one's number once it is committed.

        Raises:
            NegtempError: What stopped a shard.
        """
        data = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        )
        made = data.map(
            cast(Any, GenerateShard),  # ray's hints know functions of one argument only
            fn_constructor_args=(self._settings, self._board),
            compute=ActorPoolStrategy(
                size=self._replicas,
                max_tasks_in_flight_per_actor=_SHARDS_IN_FLIGHT,
                max_concurrent_calls_per_actor=_SHARDS_IN_FLIGHT,
                # Without it Ray Data lets the actor make one shard at a time after all.
                enable_true_multi_threading=True,
            ),
            num_cpus=self._worker_cpus,
            num_gpus=self._gpus,
        )
        committed = made.map(
            cast(Any, commit), fn_args=(self._settings.output,), num_cpus=_COMMIT_CPUS
        )
        try:
            for row in committed.iter_rows():
                if row["failure"]:
                    raise _unpickle(row["failure"])
                self._board.committed.remote()
                yield row["shard"]
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray stopped the run: {str(error).strip().splitlines()[0]}.") from error


def _unpickle(data: bytes) -> NegtempError:
    error = pickle.loads(data)
    assert isinstance(error, NegtempError)
    return error
