"""Every shard is made, whoever dies; on workers without processes."""

import random
import threading
from collections import Counter
from concurrent.futures import Future

import pytest

from negtemp_data.pipeline import dispatch
from negtemp_data.pipeline.dispatch import Dispatcher, NoWorkersError, WorkerDiedError

IN_FLIGHT = 3


class FakeWorker:
    def __init__(self, pool, name, answers):
        self.name = name
        self.answers_left = answers
        self._pool = pool

    def start(self):
        return self._pool.ask(self, None)

    def make(self, shard):
        return self._pool.ask(self, shard)

    def kill(self):
        self.answers_left = 0


class FakePool:
    """Answers in a random order, from a thread of its own.

    Args:
        seed: Of that order.
        lives: Answers of each worker before it dies, in the order of their start; the rest of them
            live for ever.
        room: Workers that can start; the others wait for ever.
    """

    def __init__(self, seed=0, lives=(), room=1_000):
        self.made = Counter()
        self.deaths = []
        self.most_open = 0
        self._lives = iter(lives)
        self._room = room
        self._random = random.Random(seed)
        self._open = []
        self._holders = {}
        self._workers = {}
        self._noted = set()
        self._lock = threading.Condition()
        threading.Thread(target=self._answer, daemon=True).start()

    def new_worker(self, name):
        self._workers[name] = FakeWorker(self, name, next(self._lives, 1_000))
        return self._workers[name]

    def note_death(self, name):
        self.deaths.append(name)
        self._noted.add(self._workers[name])

    def is_starting(self):
        return False

    def lost_helper(self):
        return None

    def ask(self, worker, shard):
        future = Future()
        if shard is None:
            self._room -= 1
            if self._room < 0:
                return future
        elif shard in self._holders:
            assert self._holders[shard] in self._noted, "begun anew before the death was noted"
        self._holders[shard] = worker
        with self._lock:
            self._open.append((worker, shard, future))
            n_open = sum(other is worker for other, _, _ in self._open)
            self.most_open = max(self.most_open, n_open)
            self._lock.notify()
        return future

    def _answer(self):
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._open)
                index = self._random.randrange(len(self._open))
                worker, shard, future = self._open.pop(index)
            if worker.answers_left > 0:
                worker.answers_left -= 1
                self.made[shard] += shard is not None
                future.set_result(None)
            else:
                future.set_exception(WorkerDiedError("killed"))


@pytest.mark.parametrize("lives", [(), (5,), (1, 0, 9, 2, 0, 0, 7, 1, 30, 3)])
@pytest.mark.parametrize("n_workers", [1, 4])
def test_each_shard_is_told_once_whoever_dies(lives, n_workers):
    for seed in range(20):
        pool = FakePool(seed, lives)
        told = list(Dispatcher(pool, range(60), IN_FLIGHT).run(n_workers))
        assert sorted(told) == list(range(60))
        assert set(pool.made) - {None} == set(told)
        assert pool.most_open <= IN_FLIGHT
        assert len(pool.deaths) >= min(1, len(lives))


def test_each_death_is_noted_once():
    pool = FakePool()
    dispatcher = Dispatcher(pool, range(3), IN_FLIGHT)
    made = dispatcher.run(1)
    first = []

    def ask(worker, shard, ask=pool.ask):
        if not pool.deaths and shard is not None:
            first.append(shard)
            future = Future()
            if len(first) == IN_FLIGHT:  # all three in flight hear of it
                for waiting in [*held, future]:
                    waiting.set_exception(WorkerDiedError("killed"))
            held.append(future)
            return future
        return ask(worker, shard)

    held = []
    pool.ask = ask
    assert sorted(made) == first == [0, 1, 2]
    assert pool.deaths == ["0"]


def test_a_failure_ends_the_run():
    pool = FakePool()

    def ask(worker, shard, ask=pool.ask):
        if shard != 5:
            return ask(worker, shard)
        future = Future()
        future.set_exception(KeyError("shard 5"))
        return future

    pool.ask = ask
    with pytest.raises(KeyError, match="shard 5"):
        list(Dispatcher(pool, range(60), IN_FLIGHT).run(2))


def test_a_lost_worker_is_waited_for_only_while_nobody_works(monkeypatch):
    monkeypatch.setattr(dispatch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(dispatch, "LONGEST_WAIT_S", 0.05)
    # Two find room, and nobody who replaces one of them: the other one makes all.
    pool = FakePool(lives=[4], room=2)
    assert sorted(Dispatcher(pool, range(30), IN_FLIGHT).run(2)) == list(range(30))
    assert len(pool.deaths) == 1
    pool = FakePool(lives=[4, 9], room=2)
    with pytest.raises(NoWorkersError, match="no room"):
        list(Dispatcher(pool, range(60), IN_FLIGHT).run(2))


def test_what_the_workers_need_and_is_gone_ends_the_run(monkeypatch):
    monkeypatch.setattr(dispatch, "_LOOK_EVERY_S", 0.01)
    pool = FakePool(room=0)
    words = iter([None, None, "the judge is gone"])
    pool.lost_helper = lambda: next(words)
    with pytest.raises(NoWorkersError, match="the judge is gone"):
        list(Dispatcher(pool, range(3), IN_FLIGHT).run(1))


def test_workers_that_die_before_they_start_end_the_run():
    with pytest.raises(NoWorkersError, match=r"died 20 times .* of this: killed"):
        list(Dispatcher(FakePool(lives=[0] * 100), range(60), IN_FLIGHT).run(2))
