"""Judges' engines of their own: actors that work while generation goes on.

Only prompts and answers travel; what is asked and what an answer means stays with the worker that
made the sample. A replica that dies is replaced by Ray.
"""

import asyncio
import json
import os
import pickle
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from negtemp_data.engine.catalogue import folder_here
from negtemp_data.engine.engine import Engine, EngineSpec, Generation
from negtemp_data.engine.questions import question_params
from negtemp_data.engine.steps import StepLog
from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.errors import EngineDeadError, EngineStartError, NegtempError, StorageError
from negtemp_data.jobspec import (
    SAME,
    EngineJudgeConfig,
    Job,
    RewardJudgeConfig,
    count_gpus,
    judges_with_engines,
)
from negtemp_data.judging import Judge, build_judge
from negtemp_data.judging.asking import JudgingEngine, Question
from negtemp_data.pipeline.board import report_pause_s, restart_pause_s
from negtemp_data.pipeline.dispatch import LONGEST_WAIT_S
from negtemp_data.pipeline.logs import send_output_to
from negtemp_data.pipeline.metrics import JudgeMetrics
from negtemp_data.pipeline.progress import Tally
from negtemp_data.pipeline.replicas import EngineFacts, RemoteEngine
from negtemp_data.storage import Output

EXIT_ENGINE_DEAD = 70
"""Exit code of a process whose engine died (EX_SOFTWARE of sysexits.h)."""

_MAX_STARTS_IN_VAIN = 10
"""Starts of an engine without an answer, before it gives up; a request may kill four."""

_MOST_REQUESTS = 4096
"""Requests that a replica takes at a time."""


class JudgePool(NamedTuple):
    """Engines that judges of the same needs share."""

    model: str
    """As the job names it."""
    model_path: str
    """Its folder on the driver's machine."""
    arguments: str
    """vLLM's engine arguments, as JSON."""
    replicas: int
    gpus: float
    """Of each replica."""
    is_pooling: bool

    def replica_key(self, number: int) -> str:
        """Names a replica on the board, whatever process it lives in."""
        return f"{number} of {self!r}"


@dataclass(frozen=True)
class JudgeSettings:
    """What a replica needs; picklable."""

    run: str
    """The job's name."""
    pool: JudgePool
    number: int
    """Of the replica, within its pool."""
    engine: EngineSpec
    output: Output

    @property
    def key(self) -> str:
        """Names the replica on the board."""
        return self.pool.replica_key(self.number)


class JudgeReplica:
    """One engine of a judge; an actor's plain class."""

    def __init__(self, settings: JudgeSettings, board: Any) -> None:
        self._settings, self._board = settings, board
        self._failure: NegtempError | None = None
        self._engine: Engine | None = None
        self._output = output = settings.output
        self._name = f"judge-{ray.util.get_node_ip_address()}-{os.getpid()}"
        try:
            send_output_to(output.logs / f"{self._name}.log")
            threading.Thread(target=self._keep_reporting, name="report", daemon=True).start()
            self._announce_start()
            path = folder_here(settings.engine.model_path, settings.pool.model)
            self._engine = Engine(replace(settings.engine, model_path=path))
        except NegtempError as error:
            self._failure = error
        except (OSError, RayError) as error:
            self._failure = EngineStartError(f"a judge's engine could not start: {error}.")
        if self._failure is None:
            self._note("judge_ready")
        else:
            self._note("judge_failed", reason=str(self._failure))
            board.judge_failed.remote(settings.key, str(self._failure))

    async def describe(self) -> bytes:
        """`EngineFacts`, or the error that kept the engine from starting; pickled."""
        if self._engine is None:
            return pickle.dumps(self._failure)
        arguments = dict(self._settings.engine.arguments)
        return pickle.dumps(
            EngineFacts(self._engine.model_path, self._engine.max_model_len, arguments)
        )

    async def answer(self, question: Question) -> Generation:
        """The engine's answer."""
        if self._engine is None:
            assert self._failure is not None
            raise self._failure
        try:
            return await asyncio.wrap_future(_ask(self._engine, question))
        except EngineDeadError as error:
            self._note("judge_died", reason=str(error))
            # Not an exception: Ray would keep this actor, whose engine is gone.
            os._exit(EXIT_ENGINE_DEAD)

    def _note(self, event: str, **fields: Any) -> None:
        with suppress(StorageError):  # the worker that can't write either stops the run
            self._output.append_event(event, worker=self._name, **fields)

    def _announce_start(self) -> None:
        """Notes a start; waits before one that follows others in vain, and gives up after some."""
        starts, failure = ray.get(self._board.judge_starts.remote(self._settings.key))
        if failure is not None:  # workers have heard of it, and ask the others
            raise EngineStartError(failure)
        self._note("judge_starts", in_vain=starts - 1)
        if starts > _MAX_STARTS_IN_VAIN:
            raise EngineStartError(
                f"an engine of the judge {self._settings.pool.model} died {starts - 1} times in a "
                f"row before it was seen to answer; see the run's logs, {self._output.logs}."
            )
        time.sleep(restart_pause_s(starts - 1))

    def _keep_reporting(self) -> None:
        """Tells the board that this process lives, from before its engine starts."""
        settings = self._settings
        metrics = JudgeMetrics(settings.run, settings.pool.model)
        while self._failure is None:
            steps = self._engine.steps if self._engine is not None else StepLog()
            metrics.saw_tokens(steps.prompt_tokens)
            self._board.report_judge.remote(settings.key, self._name, steps)
            time.sleep(report_pause_s(settings.engine.replicas))


def judge_pools(job: Job, model_paths: Mapping[str, str], has_gpus: bool) -> dict[str, JudgePool]:
    """The pool of each judge that has engines of its own, by its path in the job file.

    Args:
        job: The job.
        model_paths: Folders of those judges' models, by path.
        has_gpus: Whether the cluster has any.
    """
    return {
        path: JudgePool(
            judge.model,
            model_paths[path],
            json.dumps(judge.engine, sort_keys=True),
            judge.replicas,
            count_gpus(judge.gpus_per_replica, judge.engine, has_gpus),
            isinstance(judge, RewardJudgeConfig),
        )
        for path, judge in judges_with_engines(job.verify.judge)
    }


def start_pools(
    job: Job, output: Output, pools: Mapping[str, JudgePool], n_engines: int, board: Any
) -> dict[str, list[Any]]:
    """Starts the replicas of all pools; those of each judge by its path in the job file."""
    started = {
        pool: [
            _start(_settings(job, output, pool, number, n_engines), board)
            for number in range(pool.replicas)
        ]
        for pool in set(pools.values())
    }
    return {path: started[pool] for path, pool in pools.items()}


def lost_judge(pools: Iterable[JudgePool], tally: Tally, since: float) -> str | None:
    """Why one of the pools has no engine any more; None: all have.

    Args:
        pools: The judges' pools.
        tally: What their replicas have reported.
        since: Those that spoke before that time and have not since are gone, for good as it seems;
            one that never spoke waits for its first place.
    """
    for pool in pools:
        keys = [*map(pool.replica_key, range(pool.replicas))]
        left = [key for key in keys if key not in tally.judge_failures]
        if not left:
            return tally.judge_failures[keys[0]]
        words = [tally.judges_seen_at[key] for key in left if key in tally.judges_seen_at]
        if words and max(words) < since:
            return (
                f"the engines of the judge {pool.model} are gone, with their machines or without, "
                f"and there has been no room for another one for {LONGEST_WAIT_S:.0f} s"
            )
    return None


def _settings(
    job: Job, output: Output, pool: JudgePool, number: int, n_engines: int
) -> JudgeSettings:
    engine = EngineSpec(
        model_path=pool.model_path,
        arguments=json.loads(pool.arguments),
        is_cpu=not pool.gpus,
        replicas=n_engines,
        is_pooling=pool.is_pooling,
    )
    return JudgeSettings(job.name, pool, number, engine, output)


def _start(settings: JudgeSettings, board: Any) -> Any:
    """An actor that waits for its GPUs, and that Ray starts anew when it dies."""
    options: dict[str, Any] = {
        "num_cpus": 0,  # the worker that waits for it holds the slots
        "num_gpus": settings.pool.gpus,
        "max_restarts": -1,
        # And no max_task_retries: calls fail when it dies, at once, and may be made to another.
        "max_concurrency": _MOST_REQUESTS,
        "scheduling_strategy": "SPREAD",
    }
    return ray.remote(JudgeReplica).options(**options).remote(settings, board)


class LocalEngine:
    """The generator's engine, as judges see it."""

    def __init__(self, engine: Engine) -> None:
        """Takes an engine that runs in this process."""
        self._engine = engine
        self.tokenizer: Any = engine.tokenizer
        self.max_model_len = engine.max_model_len

    def submit(self, question: Question) -> "Future[Generation]":
        """Queues a request."""
        return _ask(self._engine, question)


def _ask(engine: Engine, question: Question) -> "Future[Generation]":
    params = question_params(question.kind, question.label_ids, question.max_tokens)
    return engine.submit(question.prompt_token_ids, params)


def job_judge(job: Job, engine: Engine, replicas: "dict[str, list[Any]]") -> Judge | None:
    """The job's judge, for a worker whose generator runs on `engine`; None where it has none.

    Args:
        job: The job.
        engine: For judges that share the generator's.
        replicas: Those of the other judges, by path in the job file.

    Raises:
        NegtempError: A judge does not suit its model, or its engine did not start.
    """
    found: dict[int, tuple[JudgingEngine, PromptEncoder]] = {}

    def engine_of(path: str, config: EngineJudgeConfig) -> tuple[JudgingEngine, PromptEncoder]:
        is_same = config.model == SAME
        # Judges of one pool have one list of replicas.
        key = id(engine if is_same else replicas[path])
        if key not in found:
            asked: JudgingEngine = (
                LocalEngine(engine) if is_same else RemoteEngine(replicas[path], config.model)
            )
            template_kwargs = job.generate.chat_template_kwargs if is_same else {}
            encoder = PromptEncoder(asked.tokenizer, asked.max_model_len - 1, template_kwargs)
            found[key] = asked, encoder
        return found[key]

    if job.verify.judge is None:
        return None
    return build_judge(job.verify.judge, engine_of, engine.tokenizer)
