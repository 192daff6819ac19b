"""Hands shards to workers, and starts another worker in the place of each that dies; without Ray.

The dispatcher sleeps until a worker answers; after five seconds without an answer it asks whether
anybody is left, and what they need.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

_LOOK_EVERY_S = 5.0
LONGEST_WAIT_S = 300.0
"""For room, once all that need it are lost; an autoscaler needs minutes for a machine."""
_MAX_FALSE_STARTS = 10
"""Deaths in a row, per worker, before it takes shards; a worker that finds its engine dying again
and again says so before."""


class WorkerDiedError(Exception):
    """A worker's process is gone, or out of reach."""


class NoWorkersError(Exception):
    """Nobody is left to make the shards, or what they need is gone."""


class Worker(Protocol):
    """One life of a worker. Its futures raise WorkerDiedError where that ends first."""

    name: str
    """The same for the worker that replaces it."""

    def start(self) -> "Future[None]":
        """Done when it takes shards."""

    def make(self, shard: int) -> "Future[None]":
        """Done when the shard is committed."""

    def kill(self) -> None:
        """Makes sure that it does nothing any more."""


class Pool(Protocol):
    """Where workers come from."""

    def new_worker(self, name: str) -> Worker:
        """A worker, which may have to wait for room."""

    def note_death(self, name: str) -> None:
        """Notes that a worker is gone, before what it had is begun anew."""

    def is_starting(self) -> bool:
        """Whether any worker has found room and starts its engine."""

    def lost_helper(self) -> str | None:
        """What else the workers need and is gone, for good as it seems; None: nothing."""


class _Answer(NamedTuple):
    worker: Worker
    shard: int | None
    """None: it has started."""
    future: "Future[None]"


class Dispatcher:
    """Shards that are to be made, and the workers that make them."""

    def __init__(self, pool: Pool, shards: Iterable[int], in_flight: int) -> None:
        """Nothing is handed out yet.

        Args:
            pool: Where workers come from.
            shards: Numbers of the shards.
            in_flight: Most shards that a worker has at a time.
        """
        self._pool = pool
        self._todo = deque(shards)
        self._n_left = len(self._todo)
        self._in_flight = in_flight
        self._workers: dict[str, Worker] = {}
        self._ready: set[str] = set()
        self._places: deque[Worker] = deque()
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        self._last_death: float | None = None
        self._false_starts = 0

    def run(self, n_workers: int) -> Generator[int]:
        """Yields each shard's number once it is committed.

        Raises:
            NoWorkersError: All are lost, or what they need is, and there is no room for others; or
                none starts.
            Exception: What a worker's future raised, but for its death.
        """
        for number in range(n_workers):
            self._start(str(number))
        while self._n_left:
            worker, shard, future = self._next()
            try:
                future.result()
            except WorkerDiedError as death:
                if shard is None:
                    self._note_false_start(death)
                else:
                    self._todo.appendleft(shard)
                self._replace(worker)
                self._hand_out()
                continue
            self._places += [worker] * (self._in_flight if shard is None else 1)
            self._hand_out()
            if shard is None:
                self._ready.add(worker.name)
                self._false_starts = 0
            else:
                self._n_left -= 1
                yield shard

    def _start(self, name: str) -> None:
        worker = self._workers[name] = self._pool.new_worker(name)
        self._listen(worker, None, worker.start())

    def _listen(self, worker: Worker, shard: int | None, future: "Future[None]") -> None:
        future.add_done_callback(lambda done: self._answers.put(_Answer(worker, shard, done)))

    def _next(self) -> _Answer:
        while True:
            try:
                return self._answers.get(timeout=_LOOK_EVERY_S)
            except Empty:
                self._check_for_room()

    def _check_for_room(self) -> None:
        if lost := self._pool.lost_helper():
            raise NoWorkersError(lost)
        if self._ready or self._last_death is None or self._pool.is_starting():
            return
        if time.monotonic() - self._last_death > LONGEST_WAIT_S:
            raise NoWorkersError(
                "all workers are gone, with their machines or without, and there has been no room "
                f"for another one for {LONGEST_WAIT_S:.0f} s"
            )

    def _note_false_start(self, death: WorkerDiedError) -> None:
        self._false_starts += 1
        if self._false_starts >= _MAX_FALSE_STARTS * len(self._workers):
            raise NoWorkersError(
                f"workers died {self._false_starts} times before they took a shard, the last one "
                f"of this: {death}"
            ) from death

    def _replace(self, worker: Worker) -> None:
        """Once for each death, of which all futures of the worker tell."""
        if self._workers[worker.name] is worker:
            worker.kill()  # may be out of reach only
            self._ready.discard(worker.name)
            self._last_death = time.monotonic()
            self._pool.note_death(worker.name)
            self._start(worker.name)

    def _hand_out(self) -> None:
        while self._todo and self._places:
            worker = self._places.popleft()
            if self._workers[worker.name] is worker:
                shard = self._todo.popleft()
                self._listen(worker, shard, worker.make(shard))
