"""The lock of an output on an object store: numbered objects with a heartbeat.

    _run/lock/7.json   who holds it, and the time of the last heartbeat

Who wants the lock creates the next number, which one writer at most can do; a holder that finds a
higher number than its own has lost the lock, and must stop. Numbers are never used again, so that
a holder that was thought dead can't take its successor's for its own. Machines' clocks have to
agree to within some seconds; where they do not, two runs do the same work, and nothing worse.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from negtemp_data.errors import OutputLockedError, RunError, StorageError
from negtemp_data.storage.store import Store

SILENCE_S = 60.0
"""Seconds without a heartbeat after which a holder is taken for dead."""

_BEAT_S = 10.0


class _Holding(NamedTuple):
    """The object with the highest number."""

    number: int
    """0: there is none."""
    state: dict[str, Any]


class Lease:
    """One holder's claim, which a thread keeps alive."""

    def __init__(
        self,
        store: Store,
        where: str,
        holder: Mapping[str, Any],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Asks for nothing yet.

        Args:
            store: The store of the lock's objects.
            where: What is locked, for people.
            holder: Who this is, for people, with an `id` that nobody else has.
            clock: Seconds since the epoch.
        """
        self._store = store
        self._where = where
        self._holder = dict(holder)
        self._clock = clock
        self._number = 0
        self._beat_at = 0.0
        self._is_lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    def acquire(self) -> None:
        """Takes the lock, and keeps it from now on.

        Raises:
            OutputLockedError: Somebody holds it.
            StorageError: The store refused.
        """
        last = _read(self._store)
        if _is_alive(last, self._clock()):
            raise OutputLockedError(
                f"{self._where}: another run ({describe(last.state)}) writes to it; wait for it, "
                "stop it, or choose another --out. If it is dead, its lock is free "
                f"{SILENCE_S:.0f} s after its last sign of life, which was "
                f"{max(0.0, self._clock() - last.state['beat']):.0f} s ago."
            )
        self._number = last.number + 1
        if not self._store.create(_name(self._number), self._encode()):
            winner = _read(self._store)
            # An answer that got lost makes our own object look like somebody else's.
            if winner.number != self._number or winner.state.get("id") != self._holder["id"]:
                raise OutputLockedError(
                    f"{self._where}: another run ({describe(winner.state)}) has just begun to "
                    "write to it; wait for it, stop it, or choose another --out."
                )
        older = [name for name in self._store.entries() if _number_of(name) < self._number]
        self._store.remove(older)
        self._thread.start()

    def beat(self) -> None:
        """Says that this holder is alive; notes where somebody else has taken its place.

        Raises:
            StorageError: The store refused.
        """
        self._is_lost = self._is_lost or _read(self._store).number != self._number
        if not self._is_lost:
            self._store.replace(_name(self._number), self._encode())

    def check(self) -> None:
        """Stops a holder that has lost the lock.

        Raises:
            RunError: Somebody else has it.
        """
        if self._clock() - self._beat_at >= SILENCE_S:
            # The machine was asleep, or the store out of reach.
            with suppress(StorageError):
                self.beat()
        if self._is_lost:
            raise RunError(
                f"{self._where}: another run has taken it over, because nothing was heard of this "
                f"one for {SILENCE_S:.0f} s; what is committed is safe, and that run goes on."
            )

    def release(self) -> None:
        """Gives the lock back; where that fails, it is free when it has been silent for long."""
        self._end.set()
        self._thread.join()
        with suppress(StorageError):
            if _read(self._store).number == self._number:
                self._store.replace(_name(self._number), self._encode(released=True))

    def _keep_beating(self) -> None:
        while not self._end.wait(_BEAT_S):
            # A store that is out of reach now may be back at the next beat.
            with suppress(StorageError):
                self.beat()

    def _encode(self, **fields: Any) -> bytes:
        self._beat_at = self._clock()
        return json.dumps(self._holder | {"beat": self._beat_at} | fields).encode()


def is_alive(store: Store, clock: Callable[[], float] = time.time) -> bool:
    """Whether somebody holds the lock whose objects are in `store`.

    Raises:
        StorageError: The store can't be read.
    """
    return _is_alive(_read(store), clock())


def describe(holder: Mapping[str, Any]) -> str:
    """Who holds a lock, for people."""
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"


def _is_alive(holding: _Holding, now: float) -> bool:
    state = holding.state
    return bool(state) and not state.get("released") and now - state["beat"] < SILENCE_S


def _read(store: Store) -> _Holding:
    while True:
        number = max((_number_of(name) for name in store.entries()), default=0)
        if not number:
            return _Holding(0, {})
        # A successor may remove the object between the two requests.
        with suppress(FileNotFoundError):
            return _Holding(number, json.loads(store.read(_name(number))))


def _name(number: int) -> str:
    return f"{number}.json"


def _number_of(name: str) -> int:
    stem = name.removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0
