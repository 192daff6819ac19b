"""A judge's replicas as one engine, seen from a worker.

A replica is asked from its first word on, and not from its death until its next word: what it had
is asked of the others, and where none is left, of the first that comes back. Where its word is that
its engine does not start, it is left out; where all say so, the run can't go on.
"""

import pickle
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray.exceptions import RayError, RayTaskError

from negtemp_data.engine.catalogue import folder_here
from negtemp_data.engine.engine import Generation
from negtemp_data.engine.tokens import load_tokenizer
from negtemp_data.errors import EngineStartError, JudgeError, NegtempError, RowError
from negtemp_data.judging.asking import Question

_SUSPECT_DEATHS = 2
"""Replicas that have died under a request before it is asked alone: it may be what kills them."""

_MOST_DEATHS = 4
"""Replicas that have died under a request when its row fails."""


class EngineFacts(NamedTuple):
    """What a worker must know of a replica's engine."""

    model_path: str
    max_model_len: int
    arguments: dict[str, Any]
    """vLLM's engine arguments of the job."""


@dataclass(eq=False)
class _Request:
    question: Question
    answer: "Future[Generation]" = field(default_factory=Future)
    deaths: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.deaths >= _SUSPECT_DEATHS


class RemoteEngine:
    """Replicas of one judge; safe to use from any thread."""

    def __init__(self, replicas: Sequence[Any], model: str) -> None:
        """Waits until one of the replicas takes requests; `model` is named as in the job.

        Raises:
            NegtempError: No engine starts, or this machine can't have the tokenizer.
        """
        self._replicas = replicas
        self._n_open = [0] * len(replicas)
        self._present: set[int] = set()
        self._failures: dict[int, Exception] = {}
        self._waiting: deque[_Request] = deque()
        self._suspect: _Request | None = None
        """The one that is being asked."""
        self._suspects: deque[_Request] = deque()
        self._lock = threading.Lock()
        # Ray's callbacks run on the thread that its calls depend on, so they ask nothing.
        self._asking = ThreadPoolExecutor(1, "ask again")
        self._facts: Future[EngineFacts] = Future()
        for index in range(len(replicas)):
            self._await(index)
        facts = self._facts.result()
        self.max_model_len = facts.max_model_len
        path = folder_here(facts.model_path, model)
        self.tokenizer: Any = load_tokenizer(path, facts.arguments)

    def submit(self, question: Question) -> "Future[Generation]":
        """Asks the replica that has the fewest open requests of this worker."""
        request = _Request(question)
        request.answer.set_running_or_notify_cancel()  # who asked may be gone before it comes
        self._ask(request)
        return request.answer

    def _await(self, index: int) -> None:
        """Has a replica asked again from its next word on."""
        describe = self._replicas[index].describe.options(max_task_retries=-1)
        _call(describe).add_done_callback(lambda word: self._hear(index, word))

    def _hear(self, index: int, word: "Future[bytes]") -> None:
        try:
            facts = pickle.loads(word.result())
        except Exception as error:  # gone for good, or of another version
            first_line = str(error).strip().partition("\n")[0]
            facts = EngineStartError(f"an engine of the judge can't be asked: {first_line}")
        if isinstance(facts, NegtempError):
            self._leave_out(index, facts)
            return
        with self._lock:
            self._present.add(index)
            waiting, self._waiting = self._waiting, deque()
            if not self._facts.done():
                self._facts.set_result(facts)
        self._asking.submit(self._ask_all, waiting)

    def _leave_out(self, index: int, failure: Exception) -> None:
        with self._lock:
            self._failures[index] = failure
            if len(self._failures) < len(self._replicas):
                return
            if not self._facts.done():
                self._facts.set_exception(failure)
            hopeless = [*self._waiting, *self._suspects]
        for request in hopeless:
            request.answer.set_exception(failure)

    def _ask_all(self, requests: Sequence[_Request]) -> None:
        for request in requests:
            self._ask(request)

    def _ask(self, request: _Request) -> None:
        with self._lock:
            if len(self._failures) == len(self._replicas):
                request.answer.set_exception(self._failures[0])
                return
            if request.is_suspect and self._suspect not in (None, request):
                self._suspects.append(request)
                return
            if request.is_suspect:
                self._suspect = request
            if not self._present:
                self._waiting.append(request)
                return
            index = min(self._present, key=self._n_open.__getitem__)
            self._n_open[index] += 1
        asked = _call(self._replicas[index].answer, request.question)
        asked.add_done_callback(lambda asked: self._finish(index, asked, request))

    def _finish(self, index: int, asked: "Future[Generation]", request: _Request) -> None:
        error = asked.exception()
        cause = error.cause if isinstance(error, RayTaskError) else error
        is_death = isinstance(error, RayError) and not isinstance(error, RayTaskError)
        # One that died without a request from here, and whose engine did not start again, says so.
        is_lost = is_death or (isinstance(cause, NegtempError) and not isinstance(cause, RowError))
        request.deaths += is_death
        is_over = not is_lost or request.deaths == _MOST_DEATHS
        with self._lock:
            self._n_open[index] -= 1
            is_news = is_lost and index in self._present
            if is_news:
                self._present.remove(index)
            again = [] if is_over else [request]
            if self._suspect is request and is_over:
                self._suspect = None
                again += [self._suspects.popleft()] if self._suspects else []
        if is_news:
            self._asking.submit(self._await, index)
        if again:
            self._asking.submit(self._ask_all, again)
        if not is_over:
            return
        if error is None:
            request.answer.set_result(asked.result())
        elif is_death:
            what = f"the judge's engine died {_MOST_DEATHS} times under this request"
            request.answer.set_exception(JudgeError(what))
        else:
            request.answer.set_exception(cause if isinstance(cause, NegtempError) else error)


def _call(method: Any, *arguments: Any) -> "Future[Any]":
    """An actor's answer, also where the call itself fails: nobody looks at what a thread raises."""
    try:
        answer: Future[Any] = method.remote(*arguments).future()
    except Exception as error:
        answer = Future()
        answer.set_exception(error)
    return answer
