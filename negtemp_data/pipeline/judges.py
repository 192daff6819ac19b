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
    single_judges,
)
from negtemp_data.judging import Judge, build_judge
from negtemp_data.judging.asking import JudgingEngine, Question
from negtemp_data.pipeline.board import MAX_STARTS_IN_VAIN, report_pause_s, restart_pause_s
from negtemp_data.pipeline.logs import send_output_to
from negtemp_data.pipeline.metrics import JudgeMetrics
from negtemp_data.pipeline.replicas import EngineFacts, RemoteEngine
from negtemp_data.storage import Output

EXIT_ENGINE_DEAD = 70
"""Exit code of a process whose engine died (EX_SOFTWARE of sysexits.h)."""

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
        send_output_to(output.logs / f"{self._name}.log")
        threading.Thread(target=self._keep_reporting, name="report", daemon=True).start()
        try:
            self._announce_start()
            path = folder_here(settings.engine.model_path, settings.pool.model)
            self._engine = Engine(replace(settings.engine, model_path=path))
            output.append_event("judge_ready", worker=self._name)
        except NegtempError as error:
            self._failure = error
            with suppress(StorageError):
                output.append_event("judge_failed", worker=self._name, reason=str(error))

    async def describe(self) -> bytes:
        """`EngineFacts`, or the error that kept the engine from starting; pickled."""
        if self._engine is None:
            return pickle.dumps(self._failure)
        return pickle.dumps(EngineFacts(self._engine.model_path, self._engine.max_model_len))

    async def answer(self, question: Question) -> Generation:
        """The engine's answer; who has read of a failure does not ask."""
        assert self._engine is not None
        try:
            return await asyncio.wrap_future(_ask(self._engine, question))
        except EngineDeadError as error:
            with suppress(StorageError):
                self._output.append_event("judge_died", worker=self._name, reason=str(error))
            # Not an exception: Ray would keep this actor, whose engine is gone.
            os._exit(EXIT_ENGINE_DEAD)

    def _announce_start(self) -> None:
        """Notes a start; waits before one that follows others in vain, and gives up after some."""
        starts = ray.get(self._board.judge_starts.remote(self._settings.key))
        self._output.append_event("judge_starts", worker=self._name, in_vain=starts - 1)
        if starts > MAX_STARTS_IN_VAIN:
            raise EngineStartError(
                f"an engine of the judge {self._settings.pool.model} was started {starts - 1} "
                f"times without answering anything; the run's logs, {self._output.logs}, say why "
                "it died."
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
        for path, judge in single_judges(job.verify.judge)
        if path in model_paths and isinstance(judge, EngineJudgeConfig)
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


def lost_judge(
    pools: Iterable[JudgePool], seen_at: Mapping[str, float], since: float
) -> str | None:
    """Model of a pool that has been silent since that time; None: there is none.

    One that never said a word still waits for its first place.
    """
    for pool in pools:
        keys = map(pool.replica_key, range(pool.replicas))
        words = [seen_at[key] for key in keys if key in seen_at]
        if words and max(words) < since:
            return pool.model
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
