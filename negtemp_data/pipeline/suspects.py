"""Finds the rows that kill engines, by what was in flight when engines died.

Engines also die for reasons of their own: a machine goes away, memory runs out. So a shard is made
as usual after a first death. After a second one its unfinished rows are suspects: they run in
groups that have the engine to themselves, and a group under which the engine dies again is halved.
A row is given up after two deaths alone. Whoever is innocent loses time, never its row.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_DEATHS_OF_SHARD = 2
_DEATHS_ALONE = 2


@dataclass(frozen=True)
class Care:
    """How to go about a shard under which engines have died."""

    sizes: Mapping[str, int]
    """Largest group for a row, by id; rows that are not in it have not been in a group yet."""
    given_up: frozenset[str]
    """Ids of rows that killed an engine alone, twice."""

    def groups(self, row_ids: Sequence[str]) -> list[list[str]]:
        """Cuts unfinished rows, in their order, into groups that run one after the other."""
        half = -(-len(row_ids) // 2)
        groups: list[list[str]] = []
        largest = 0
        for row_id in row_ids:
            size = self.sizes.get(row_id, half)
            if groups and len(groups[-1]) < min(largest, size):
                groups[-1].append(row_id)
                largest = min(largest, size)
            else:
                groups.append([row_id])
                largest = size
        return groups


class Suspects:
    """What is in flight where, and what engines have died under."""

    def __init__(self) -> None:
        """Nothing is in flight."""
        self._open: defaultdict[str, set[int]] = defaultdict(set)
        self._group: dict[str, Sequence[str]] = {}
        self._deaths: Counter[int] = Counter()
        self._sizes: dict[str, int] = {}
        self._deaths_alone: Counter[str] = Counter()

    def begin(self, worker: str, shard: int) -> Care | None:
        """Notes that a worker makes a shard; returns what to mind, if anything."""
        self._open[worker].add(shard)
        if self._deaths[shard] < _DEATHS_OF_SHARD:
            return None
        given_up = {row for row, n in self._deaths_alone.items() if n >= _DEATHS_ALONE}
        return Care(dict(self._sizes), frozenset(given_up))

    def run_group(self, worker: str, row_ids: Sequence[str]) -> None:
        """Notes that a group has the worker's engine to itself; an empty one: it is done."""
        self._group[worker] = row_ids

    def end(self, worker: str, shard: int) -> None:
        """Notes that a shard is made."""
        self._open[worker].discard(shard)

    def died(self, worker: str) -> bool:
        """Notes that a worker is gone; returns whether that narrows the suspects down."""
        shards = self._open.pop(worker, set())
        group = self._group.pop(worker, ())
        if not group:
            self._deaths.update(shards)
            return False
        if len(group) == 1:
            self._deaths_alone.update(group)
        self._sizes.update(dict.fromkeys(group, max(1, len(group) // 2)))
        return True
