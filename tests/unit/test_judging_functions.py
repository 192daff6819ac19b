"""Functions of the user's own that are slow, or never return."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from negtemp_data.errors import JudgeError, RunError
from negtemp_data.jobspec import PythonCheckConfig, PythonJudgeConfig
from negtemp_data.judging import Judgement, functions, run_checks
from negtemp_data.judging.python import PythonJudge
from negtemp_data.judging.sample import Sample
from test_checks import make_sample

released = threading.Event()
"""Ends the calls that would never return, when the test is over."""

at_once: list[int] = []
"""Calls of `counting` that were under way, each time that one began."""
_under_way: set[int] = set()


def waiting(sample: Sample) -> Any:
    if sample.completion == "wait":
        released.wait()
    return True


def scoring(sample: Sample) -> Any:
    waiting(sample)
    return 7


def counting(sample: Sample) -> Any:
    _under_way.add(threading.get_ident())
    at_once.append(len(_under_way))
    released.wait(0.01)
    _under_way.discard(threading.get_ident())
    return True


def odd(sample: Sample) -> Any:
    return {"nan": float("nan"), "True": True, "None": None, "exit": 0}[sample.completion]


@pytest.fixture(autouse=True)
def a_moment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit that is soon over, and threads that end with the test."""
    monkeypatch.setattr(functions, "LIMIT_S", 1.0)
    released.clear()
    functions._stuck.clear()
    yield
    released.set()
    functions._stuck.clear()


def judge_of(name: str) -> PythonJudge:
    function = f"test_judging_functions:{name}"
    return PythonJudge(PythonJudgeConfig(kind="python", function=function, accept_at=0))


def check_of(name: str) -> PythonCheckConfig:
    return PythonCheckConfig(kind="python", function=f"test_judging_functions:{name}")


async def outcomes(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def judge_all(judge: PythonJudge, *completions: str) -> list[Any]:
    return asyncio.run(outcomes(*(judge.judge(make_sample(text)) for text in completions)))


def test_a_judge_that_never_returns_fails_its_row_and_no_other() -> None:
    stuck, *others = judge_all(judge_of("scoring"), "wait", *["go on"] * 40)
    assert isinstance(stuck, JudgeError)
    assert str(stuck) == "test_judging_functions:scoring: took longer than 1 s"
    assert all(isinstance(other, Judgement) and other.score == 7 for other in others)


def test_a_check_that_never_returns_has_failed_and_no_other() -> None:
    async def check_all() -> list[Any]:
        texts = ["wait", *["go on"] * 40]
        return await outcomes(
            *(run_checks([check_of("waiting")], make_sample(text)) for text in texts)
        )

    (stuck,), *others = asyncio.run(check_all())
    assert (stuck.passed, stuck.detail) == (False, "took longer than 1 s")
    assert all(result.passed for (result,) in others)


@pytest.mark.parametrize("kind", ["judge", "check"])
def test_the_event_loop_goes_on_while_a_function_does_not_return(kind: str) -> None:
    async def count_turns() -> int:
        sample = make_sample("wait")
        calls = {
            "judge": lambda: judge_of("scoring").judge(sample),
            "check": lambda: run_checks([check_of("waiting")], sample),
        }
        call, n_turns = asyncio.ensure_future(outcomes(calls[kind]())), 0
        while not call.done():
            await asyncio.sleep(0)
            n_turns += 1
        return n_turns

    assert asyncio.run(count_turns()) > 10


def test_with_too_many_stuck_calls_the_run_ends() -> None:
    most = functions.MOST_STUCK
    found = judge_all(judge_of("scoring"), *["wait"] * most)
    errors = [type(error) for error in found]
    assert errors.count(JudgeError) == most - 1 and errors.count(RunError) == 1
    (error,) = (error for error in found if isinstance(error, RunError))
    assert f"scoring: {most} calls took longer than 1 s and still go on" in str(error)


def test_calls_that_return_after_their_time_are_not_counted_any_more() -> None:
    judge = judge_of("scoring")
    for _ in range(2):
        released.clear()
        found = judge_all(judge, *["wait"] * (functions.MOST_STUCK - 1))
        assert all(isinstance(error, JudgeError) for error in found)
        stuck = list(functions._stuck)
        released.set()
        assert all(call.result() == 7 for call in stuck)


def test_a_bounded_number_of_calls_is_under_way_whatever_the_number_of_loops() -> None:
    at_once.clear()

    def check_many() -> None:
        async def check_all() -> list[Any]:
            return await outcomes(
                *(run_checks([check_of("counting")], make_sample()) for _ in range(60))
            )

        assert all(result.passed for (result,) in asyncio.run(check_all()))

    threads = [threading.Thread(target=check_many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(at_once) == 180
    assert 1 < max(at_once) <= functions._AT_A_TIME


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("nan", "TypeError: 'must return a number; it gave nan'"),
        ("True", "TypeError: 'must return a number; it gave True'"),
        ("None", "TypeError: 'must return a number; it gave None'"),
        ("nothing", "KeyError: \"'nothing'\""),
    ],
)
def test_what_is_no_score_fails_the_row(answer: str, problem: str) -> None:
    (error,) = judge_all(judge_of("odd"), answer)
    assert isinstance(error, JudgeError)
    assert str(error) == f"test_judging_functions:odd: {problem}"


PROGRAM = """
import asyncio, threading
from negtemp_data.judging import functions
from negtemp_data.jobspec import PythonJudgeConfig
from negtemp_data.judging.python import PythonJudge
from negtemp_data.errors import JudgeError
functions.LIMIT_S = 0.1
judge = PythonJudge(PythonJudgeConfig(kind="python", function="for_ever:score", accept_at=0))
try:
    asyncio.run(judge.judge(None))
except JudgeError as error:
    print(error)
print(threading.active_count(), "threads")
"""


def test_the_process_ends_while_a_function_still_goes_on(tmp_path: Any) -> None:
    (tmp_path / "for_ever.py").write_text(
        "import time\ndef score(sample):\n    while True: time.sleep(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,  # a guard against a process that never ends
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout == "for_ever:score: took longer than 0.1 s\n2 threads\n"
