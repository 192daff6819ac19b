"""What Ray says of its actors, as the dispatcher hears it; and judges that are lost."""

import pickle
from concurrent.futures import Future

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from negtemp_data.engine.steps import StepLog
from negtemp_data.errors import EngineStartError, NegtempError
from negtemp_data.pipeline.board import Board, restart_pause_s
from negtemp_data.pipeline.dispatch import NoWorkersError, WorkerDiedError
from negtemp_data.pipeline.judges import JudgePool, lost_judge
from negtemp_data.pipeline.pool import _reason, _told
from negtemp_data.pipeline.progress import Tally


class Answer:
    """An object reference of Ray, as far as it matters."""

    def __init__(self):
        self.result = Future()

    def future(self):
        return self.result


def told(*, value=b"", error=None):
    answer = Answer()
    future = _told(answer)
    assert not future.done()
    if error is None:
        answer.result.set_result(value)
    else:
        answer.result.set_exception(error)
    return future


def test_an_empty_answer_is_success():
    assert told().result() is None


def test_a_failure_travels_as_bytes():
    future = told(value=pickle.dumps(EngineStartError("no such model")))
    with pytest.raises(NegtempError, match="no such model"):
        future.result()


@pytest.mark.parametrize(
    "error", [ActorDiedError(), NodeDiedError("gone"), OutOfMemoryError("killed")]
)
def test_a_death_is_told_as_one(error):
    with pytest.raises(WorkerDiedError, match=r"\S"):
        told(error=error).result()


def test_an_actor_that_can_not_be_made_is_no_death():
    class NotBornError(ActorDiedError):
        actor_init_failed = True

    with pytest.raises(NotBornError):
        told(error=NotBornError()).result()


def test_a_bug_is_no_death():
    error = RayTaskError("make", "traceback", KeyError("a bug"))
    with pytest.raises(RayTaskError):
        told(error=error).result()


def test_the_reason_of_a_bug_is_the_bug():
    error = RayTaskError("make", "traceback", KeyError("a bug"))
    assert _reason(error) == "a worker failed, KeyError: 'a bug'"
    assert _reason(NoWorkersError("all are gone.\nmore")) == "all are gone"


def test_a_judge_is_lost_when_none_of_its_replicas_speaks_any_more():
    first, second = (JudgePool(name, "/models", "{}", 2, 1.0, False) for name in ("a", "b"))
    tally = Tally()
    assert lost_judge([first, second], tally, since=100.0) is None  # they wait for their place
    seen_at = tally.judges_seen_at
    seen_at |= {first.replica_key(0): 101.0, second.replica_key(0): 101.0}
    assert lost_judge([first, second], tally, since=100.0) is None
    seen_at[second.replica_key(1)] = 99.0
    assert lost_judge([first, second], tally, since=100.0) is None
    seen_at[second.replica_key(0)] = 98.0
    assert "the judge b are gone" in lost_judge([first, second], tally, since=100.0)


def test_a_replica_that_has_given_up_counts_no_more():
    pool = JudgePool("a", "/models", "{}", 2, 1.0, False)
    tally = Tally(judges_seen_at={pool.replica_key(0): 99.0})
    tally.judge_failures[pool.replica_key(0)] = "no memory"
    assert lost_judge([pool], tally, since=100.0) is None  # the other waits for its place
    tally.judges_seen_at[pool.replica_key(1)] = 101.0
    assert lost_judge([pool], tally, since=100.0) is None
    assert "are gone" in lost_judge([pool], tally, since=102.0)
    tally.judge_failures[pool.replica_key(1)] = "no memory either"
    assert lost_judge([pool], tally, since=100.0) == "no memory"


def test_starts_of_a_judges_engine_count_until_it_makes_a_step():
    board, a_step = Board(), StepLog.of_step(1, 100, 0.5, 8)
    assert [board.judge_starts(name)[0] for name in ("a", "a", "b")] == [1, 2, 1]
    board.report_judge("a", "process", StepLog())  # it lives, and has answered nothing yet
    assert board.judge_starts("a") == (3, None)
    board.report_judge("a", "process", a_step)
    board.judge_failed("b", "no memory")
    assert [board.judge_starts(name) for name in ("a", "b")] == [(1, None), (2, "no memory")]


def test_pauses_before_starts_in_vain_grow_up_to_half_a_minute():
    assert [restart_pause_s(n) for n in (0, 1, 2, 4, 5, 100)] == [0, 2, 4, 16, 30, 30]
