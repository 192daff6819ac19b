"""The Ray Data graph: shard numbers → workers that generate, judge and commit.

A shard's number travels as one row in a block of its own, so several shards are in flight on each
worker and its engine's batch stays full across their borders; its rows never pass through Ray.
Workers judge what they make: on their own engine with `judge.model: same`, else on the judge's
replicas, which work while generation goes on.
"""

import logging
import os
import pickle
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from negtemp_data.engine.adapter import Adapter
from negtemp_data.engine.engine import EngineSpec
from negtemp_data.errors import NegtempError, RunError
from negtemp_data.jobspec import Job, count_gpus
from negtemp_data.pipeline.actors import GenerateShard, WorkerSettings
from negtemp_data.pipeline.board import Board
from negtemp_data.pipeline.judges import JudgePool, judge_pools, start_pools
from negtemp_data.pipeline.machines import watch_machines
from negtemp_data.pipeline.progress import Tally
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.prompts import prompts_per_shard
from negtemp_data.storage import Output

_ROWS_IN_FLIGHT = 1024
"""Rows that a worker has open at least: more than an engine's batch, so that it never runs dry."""

_SHARDS_IN_FLIGHT = range(4, 65)
"""Fewest and most shards that a worker has open at a time."""

_WORKER_CPUS = 0.5
_SOURCE_CPUS = 0.1
"""CPU slots, which Ray only counts. All stages together must stay below what the machine has, or
Ray Data stands still without a word."""

_OBJECT_STORE_BYTES = 128 << 20
"""On a Ray that the run starts itself; nothing but numbers and settings passes through it."""


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
    # Ray Data adds a worker only where those that are there have more tasks than they can run at a
    # time, which ours never have. So one is added wherever there is room, up to replicas.max, and
    # none is taken away while shards are left. Source: ray 2.60, default_actor_autoscaler.py.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.01
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    # Each row of the source, a shard's number, becomes a block and so a task of its own.
    context.target_max_block_size = 1
    context.target_min_block_size = 1
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


class ShardNumbers(Datasource):
    """The shards to make, streamed, so that a long list costs the driver nothing."""

    def __init__(self, shards: Sequence[int]) -> None:
        """Keeps the numbers."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._shards = pa.array(shards, pa.int64())

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all numbers."""
        size: int = self._shards.nbytes
        return size

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task, whatever the parallelism: it gives a number when one is wanted."""
        numbers = self._shards

        def read() -> Iterator[pa.Table]:
            for index in range(len(numbers)):
                yield pa.table({"shard": numbers[index : index + 1]})

        metadata = BlockMetadata(
            num_rows=len(numbers), size_bytes=numbers.nbytes, exec_stats=None, input_files=None
        )
        return [ReadTask(read, metadata, schema=pa.schema({"shard": pa.int64()}))]


class ShardGraph:
    """The graph over the shards that are still to be made."""

    def __init__(self, job: Job, output: Output, inputs: Inputs) -> None:
        """Sizes the stages for the cluster that is connected, and starts the judges' replicas.

        Raises:
            RunError: The cluster has not GPUs enough.
        """
        resources = ray.cluster_resources()
        has_gpus = bool(resources.get("GPU"))
        self._gpus = count_gpus(job.generate.gpus_per_replica, job.generate.engine, has_gpus)
        self._replicas = job.generate.replica_range
        cpus = resources.get("CPU", 1.0)
        self._worker_cpus = min(_WORKER_CPUS, 0.8 * cpus / self._replicas.max)
        self._board: Any = ray.remote(Board).options(num_cpus=0).remote()
        adapter = inputs.adapter
        pools = judge_pools(job, inputs.judge_paths, has_gpus)
        distinct = set(pools.values())
        n_engines = self._replicas.max + sum(pool.replicas for pool in distinct)
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
            max_replicas=self._replicas.max,
            shards_in_flight=_shards_in_flight(job),
            judges=start_pools(pools, n_engines, output),
            old_rows=inputs.old_rows,
        )

    def _check_gpus(self, pools: Iterable[JudgePool], available: float) -> None:
        """Replicas that never find a place would keep the others waiting without a word."""
        needed = self._gpus * self._replicas.min + sum(pool.replicas * pool.gpus for pool in pools)
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

        To be closed before Ray ends: a thread watches the cluster meanwhile.

        Raises:
            NegtempError: What stopped a shard.
        """
        data = ray.data.read_datasource(
            ShardNumbers(shards), ray_remote_args={"num_cpus": _SOURCE_CPUS}, override_num_blocks=1
        )
        in_flight = self._settings.shards_in_flight
        committed = data.map(
            cast(Any, GenerateShard),  # ray's hints know functions of one argument only
            fn_constructor_args=(self._settings, self._board),
            compute=ActorPoolStrategy(
                min_size=self._replicas.min,
                max_size=self._replicas.max,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
                # Without it Ray Data lets the actor make one shard at a time after all.
                enable_true_multi_threading=True,
            ),
            num_cpus=self._worker_cpus,
            num_gpus=self._gpus,
        )
        with watch_machines(self._board) as machines:
            try:
                for row in committed.iter_rows():
                    if row["failure"]:
                        raise _unpickle(row["failure"])
                    self._board.committed.remote(row["shard"])
                    yield row["shard"]
            except ray.exceptions.RayError as error:
                reason = machines.reason or str(error).strip().splitlines()[0]
                raise RunError(
                    f"Ray stopped the run: {reason}; `negtemp resume {self._settings.output.root}` "
                    "goes on with what there is."
                ) from error


def _unpickle(data: bytes) -> NegtempError:
    error = pickle.loads(data)
    assert isinstance(error, NegtempError)
    return error


def _shards_in_flight(job: Job) -> int:
    rows = prompts_per_shard(job) * job.samples_per_prompt
    fewest, most = _SHARDS_IN_FLIGHT[0], _SHARDS_IN_FLIGHT[-1]
    return min(most, max(fewest, -(-_ROWS_IN_FLIGHT // rows)))
