"""A judge's replicas as one engine, seen from a worker.

A replica is asked from its first word on, and not from its death until its next word: what it had
is asked of the others, and where none is left, of the first that comes back. Where its word is that
its engine does not start, it is asked nothing; where all say so, the run can't go on.
"""

import pickle
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray.exceptions import RayActorError, RayError, RayTaskError

from negtemp_data.engine.catalogue import folder_here
from negtemp_data.engine.engine import Generation
from negtemp_data.errors import JudgeError, NegtempError
from negtemp_data.judging.asking import Question

_MAX_DEATHS = 3
"""Deaths of replicas under a request before its row fails."""


class EngineFacts(NamedTuple):
    """What a worker must know of a replica's engine."""

    model_path: str
    max_model_len: int


@dataclass
class _Request:
    question: Question
    answer: "Future[Generation]" = field(default_factory=Future)
    deaths: int = 0


class RemoteEngine:
    """Replicas of one judge; safe to use from any thread."""

    def __init__(self, replicas: Sequence[Any], model: str) -> None:
        """Waits until one of the replicas takes requests; `model` is named as in the job.

        Raises:
            NegtempError: No engine starts, or this machine can't have the tokenizer.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415

        self._replicas = replicas
        self._n_open = [0] * len(replicas)
        self._present: set[int] = set()
        self._failures: dict[int, Exception] = {}
        self._waiting: deque[_Request] = deque()
        self._lock = threading.Lock()
        # Ray's callbacks run on the thread that its calls depend on, so they ask nothing.
        self._asking = ThreadPoolExecutor(1, "ask again")
        self._facts: Future[EngineFacts] = Future()
        for index in range(len(replicas)):
            self._await(index)
        facts = self._facts.result()
        self.max_model_len = facts.max_model_len
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder_here(facts.model_path, model))

    def submit(self, question: Question) -> "Future[Generation]":
        """Asks the replica that has the fewest open requests of this worker."""
        request = _Request(question)
        request.answer.set_running_or_notify_cancel()  # who asked may be gone before it comes
        self._ask(request)
        return request.answer

    def _await(self, index: int) -> None:
        """Has a replica asked again from its next word on."""
        describe = self._replicas[index].describe.options(max_task_retries=-1)
        describe.remote().future().add_done_callback(lambda word: self._hear(index, word))

    def _hear(self, index: int, word: "Future[bytes]") -> None:
        try:
            facts = pickle.loads(word.result())
            if isinstance(facts, NegtempError):
                raise facts
        except (NegtempError, RayError) as failure:
            self._give_up(index, failure)
            return
        with self._lock:
            self._present.add(index)
            waiting, self._waiting = self._waiting, deque()
            if not self._facts.done():
                self._facts.set_result(facts)
        for request in waiting:
            self._asking.submit(self._ask, request)

    def _give_up(self, index: int, failure: Exception) -> None:
        with self._lock:
            self._failures[index] = failure
            if len(self._failures) < len(self._replicas):
                return
            if not self._facts.done():
                self._facts.set_exception(failure)
            for request in self._waiting:
                request.answer.set_exception(failure)

    def _ask(self, request: _Request) -> None:
        with self._lock:
            if not self._present:
                if len(self._failures) < len(self._replicas):
                    self._waiting.append(request)
                else:
                    request.answer.set_exception(self._failures[0])
                return
            index = min(self._present, key=self._n_open.__getitem__)
            self._n_open[index] += 1
        # At once, rather than when the replica is back: others may have room.
        answer = self._replicas[index].answer.options(max_task_retries=0)
        asked: Future[Generation] = answer.remote(request.question).future()
        asked.add_done_callback(lambda asked: self._finish(index, asked, request))

    def _finish(self, index: int, asked: "Future[Generation]", request: _Request) -> None:
        error = asked.exception()
        is_dead = isinstance(error, RayActorError)
        with self._lock:
            self._n_open[index] -= 1
            is_news = is_dead and index in self._present
            if is_news:
                self._present.remove(index)
        if is_news:
            self._asking.submit(self._await, index)
        if error is None:
            request.answer.set_result(asked.result())
        elif not is_dead:
            request.answer.set_exception(_cause(error))
        elif request.deaths == _MAX_DEATHS:
            what = f"the judge's engine died {_MAX_DEATHS + 1} times under this request"
            request.answer.set_exception(JudgeError(what))
        else:
            request.deaths += 1
            self._asking.submit(self._ask, request)


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, RayTaskError) and isinstance(error.cause, NegtempError):
        return error.cause
    return error
