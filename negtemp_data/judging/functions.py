"""Functions of the user's own, named in the job file as `package.module:function`.

They may do anything, such as never return. So each call has a thread of its own, which is left to
itself when its time is over; as a daemon it does not keep the process from ending either.
"""

import asyncio
import importlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from negtemp_data.errors import JobError, RunError, quote
from negtemp_data.jobspec import PythonCheckConfig
from negtemp_data.judging.result import CheckResult
from negtemp_data.judging.sample import Sample

LIMIT_S = 120.0
"""Longest time for one call."""

MOST_STUCK = 16
"""Calls of a process that are over their time and still go on; with so many the run ends. Python
has no way to end a thread, and each may take processor time and memory for ever."""

_AT_A_TIME = 16
"""Calls of a process that are under way and within their time; others wait."""

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why a call has given nothing: one line."""

    text: str


def load_function(name: str, where: str) -> Callable[..., Any]:
    """The function; modules of the working directory are found too.

    Args:
        name: `package.module:function`.
        where: Path in the job file, for errors.

    Raises:
        JobError: There is no such module or function.
    """
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module raises whatever it raises
        raise JobError(
            f"{where}: {name!r} can't be loaded: {type(error).__name__}: {error}; it is written as "
            "package.module:function, and the module must be importable where the run works."
        ) from error
    if not callable(found):
        raise JobError(f"{where}: {name!r} is no function but {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


async def call_function(name: str, function: Callable[[Sample], T], sample: Sample) -> T | Problem:
    """What a function says; that it raised, or took too long, is a problem.

    Args:
        name: What the job file calls it.
        function: It, with whatever has to be done to its answer, which is just as unknown.
        sample: What it gets.

    Raises:
        RunError: Too many calls have not returned.
    """
    async with _seats:
        call = _start(function, sample)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(call), LIMIT_S)
        except TimeoutError:
            _note_stuck(name, call)
            return Problem(f"took longer than {LIMIT_S:g} s")


async def check_by_function(config: PythonCheckConfig, sample: Sample) -> CheckResult:
    """What the function says of the sample; a problem is a failed check."""

    def check(sample: Sample) -> CheckResult:
        # Where the module is loaded already, which it is after the first sample, this is quick.
        return _result_of(config, load_function(config.function, "verify.checks")(sample))

    result = await call_function(config.function, check, sample)
    return CheckResult(config.kind, False, result.text) if isinstance(result, Problem) else result


def _result_of(config: PythonCheckConfig, answer: object) -> CheckResult:
    match answer:
        case bool() | np.bool():
            return CheckResult(config.kind, bool(answer), f"returned {bool(answer)}")
        case (bool() | np.bool() as passed, str(text)):
            return CheckResult(config.kind, bool(passed), quote(text))
    raise TypeError(f"must return a bool, or a bool and a text; it gave {quote(answer)}")


class _Seats:
    """A semaphore for the event loops of several threads, which asyncio's own is not."""

    def __init__(self, n: int) -> None:
        self._n_free = n
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        with self._lock:
            if self._n_free:
                self._n_free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        await asyncio.wrap_future(turn)

    async def __aexit__(self, *error: object) -> None:
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._n_free += 1


_seats = _Seats(_AT_A_TIME)
_stuck: list[Future[Any]] = []
_stuck_lock = threading.Lock()


def _start(function: Callable[[Sample], T], sample: Sample) -> Future[T | Problem]:
    call: Future[T | Problem] = Future()
    call.set_running_or_notify_cancel()  # who gives up waiting must not cancel it

    def work() -> None:
        try:
            call.set_result(function(sample))
        # A user's function raises whatever it raises, and may try to end the process.
        except BaseException as error:
            call.set_result(Problem(_describe(error)))

    threading.Thread(target=work, name="user's function", daemon=True).start()
    return call


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {quote(str(error))}"
    except BaseException:  # its text is the user's code as well
        return type(error).__name__


def _note_stuck(name: str, call: Future[Any]) -> None:
    with _stuck_lock:
        _stuck[:] = [each for each in (*_stuck, call) if not each.done()]
        if len(_stuck) >= MOST_STUCK:
            raise RunError(
                f"{name}: {len(_stuck)} calls took longer than {LIMIT_S:g} s and still go on, and "
                "nothing but the end of the run ends them. Give what the function waits for a time "
                "limit; then `negtemp resume` goes on."
            )
