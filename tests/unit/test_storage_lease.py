"""The lock of stores: one holder, a heartbeat, taken over after silence, never given twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from negtemp_data.errors import OutputLockedError, RunError
from negtemp_data.storage import Store, open_store
from negtemp_data.storage.lease import SILENCE_S, Lease, is_alive

HOLDER = {"pid": 4711, "host": "node-1", "since": "2026-01-01T00:00:00+00:00"}


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path, "tmp")
    made.prepare(["lock"])
    return made.at("lock")


@pytest.fixture
def leases(store: Store, clock: Clock) -> Iterator[list[Lease]]:
    made = [Lease(store, "s3://b/out", HOLDER | {"id": str(n)}, clock) for n in range(3)]
    yield made
    for lease in made:
        with suppress(RuntimeError):  # it was never acquired
            lease.release()


def test_a_lease_that_is_held_is_refused_with_its_holder(
    store: Store, leases: list[Lease], clock: Clock
) -> None:
    assert not is_alive(store, clock)
    leases[0].acquire()
    clock.now += SILENCE_S - 1
    with pytest.raises(OutputLockedError) as caught:
        leases[1].acquire()
    assert "s3://b/out: another run (process 4711 on node-1, since 2026-01-01" in str(caught.value)
    assert "60 s after its last sign of life, which was 59 s ago" in str(caught.value)
    assert is_alive(store, clock)
    leases[0].check()


def test_a_lease_that_is_released_is_free_at_once_under_the_next_number(
    store: Store, leases: list[Lease], clock: Clock
) -> None:
    for number in (1, 2):
        leases[number].acquire()
        assert store.entries() == [f"{number}.json"]
        leases[number].release()
        assert not is_alive(store, clock)


def test_a_heartbeat_keeps_a_lease(store: Store, leases: list[Lease], clock: Clock) -> None:
    leases[0].acquire()
    for _ in range(5):
        clock.now += SILENCE_S - 1
        leases[0].beat()
        assert is_alive(store, clock)
        with pytest.raises(OutputLockedError):
            leases[1].acquire()


def test_a_silent_holder_loses_its_lease_and_can_not_take_it_back(
    store: Store, leases: list[Lease], clock: Clock
) -> None:
    first, second, third = leases
    first.acquire()
    clock.now += SILENCE_S
    assert not is_alive(store, clock)
    second.acquire()
    before = store.read("2.json")
    first.beat()
    with pytest.raises(RunError, match="another run has taken it over"):
        first.check()
    first.release()
    assert (store.entries(), store.read("2.json")) == (["2.json"], before)
    second.check()
    with pytest.raises(OutputLockedError):
        third.acquire()


def test_a_holder_that_was_asleep_looks_before_it_goes_on(
    leases: list[Lease], clock: Clock
) -> None:
    leases[0].acquire()
    clock.now += SILENCE_S
    leases[1].acquire()
    with pytest.raises(RunError, match="what is committed is safe"):
        leases[0].check()


def test_a_holder_that_was_asleep_keeps_what_nobody_took(
    store: Store, leases: list[Lease], clock: Clock
) -> None:
    leases[0].acquire()
    clock.now += 10 * SILENCE_S
    leases[0].check()
    assert is_alive(store, clock)


def test_of_many_that_want_a_lease_exactly_one_gets_it(store: Store, clock: Clock) -> None:
    leases = [Lease(store, "out", HOLDER | {"id": str(n)}, clock) for n in range(16)]

    def acquire(lease: Lease) -> bool:
        try:
            lease.acquire()
        except OutputLockedError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(acquire, leases))
    assert won.count(True) == 1
    leases[won.index(True)].release()
