"""When positional rules can fire, on the host.

Their firing is a pure function of (seed, rule, position), so the host knows in advance at which
steps a row can be touched. What a firing then does (cooldown, max, waiting for candidates) depends
on the logits and is the sampler's; the host only needs a window that surely contains it. A step
outside every window costs nothing.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from negtemp_data.sampling.firing import Positions, fires
from negtemp_data.sampling.records import Rule

_BLOCK = 256
"""Positions worked out at a time for one row."""


@dataclass
class _Clock:
    """Firings of one row in the block of positions [begin, end)."""

    seed: int
    rules: tuple[Rule, ...]
    begin: int = 0
    end: int = 0
    hits: dict[int, list[int]] = field(default_factory=dict)
    """Rules that fire, by position."""
    order: list[int] = field(default_factory=list)
    """The positions, rising."""
    window_end: int = -1

    def fill(self, position: int) -> None:
        """Works out the block that starts at `position`."""
        self.begin, self.end = position, position + _BLOCK
        self.hits = {}
        block = np.arange(self.begin, self.end, dtype=np.int64)
        for index, rule in enumerate(self.rules):
            if not rule.is_positional:
                continue
            for hit in block[fires(self.seed, rule, index, block)].tolist():
                self.hits.setdefault(hit, []).append(index)
        self.order = sorted(self.hits)

    def next_hit(self, position: int) -> int:
        """First firing behind `position`; the end of the block where there is none in it."""
        place = bisect_right(self.order, position)
        return self.order[place] if place < len(self.order) else self.end


class Timetable:
    """The windows of all rows, by slot.

    A slot's `wake` is the first position at which it has to be looked at.
    """

    def __init__(self) -> None:
        """Starts with no slots; `open` makes room."""
        self._clocks: dict[int, _Clock] = {}
        self._wake = np.zeros(0, dtype=np.int64)
        self._looked_at = np.zeros(0, dtype=np.int64)

    def open(self, slot: int, seed: int, rules: tuple[Rule, ...]) -> None:
        """Begins a row in `slot`, at whatever position it will first be seen."""
        if slot >= self._wake.size:
            room = np.full(max(64, slot + 1), -1, dtype=np.int64)
            self._wake = np.concatenate([self._wake, room])
            self._looked_at = np.concatenate([self._looked_at, room])
        self._clocks[slot] = _Clock(seed, rules)
        self._wake[slot] = self._looked_at[slot] = -1

    def close(self, slot: int) -> None:
        """Forgets the row in `slot`."""
        del self._clocks[slot]

    def hits(self, slots: Positions, positions: Positions) -> dict[int, list[int]]:
        """The rows that may inject here, by index, and the rules that fire in each.

        A row that is at a position for the second time (a chunk of its prefill, or a step computed
        again) is looked at again.
        """
        found = {}
        due = (positions >= self._wake[slots]) | (positions <= self._looked_at[slots])
        for i in np.flatnonzero(due).tolist():
            is_open, fired = self._look(int(slots[i]), int(positions[i]))
            if is_open:
                found[i] = fired
        return found

    def _look(self, slot: int, position: int) -> tuple[bool, list[int]]:
        """Whether `slot` may inject at `position`, and the rules that fire there."""
        clock = self._clocks[slot]
        if not clock.begin <= position < clock.end:
            clock.fill(position)
        hits = clock.hits.get(position, [])
        for index in hits:
            last = position + clock.rules[index].longest_wait
            clock.window_end = max(clock.window_end, last)
        is_open = position <= clock.window_end
        if position < clock.window_end:
            self._wake[slot] = position + 1
        else:
            self._wake[slot] = clock.next_hit(position)
        self._looked_at[slot] = position
        return is_open, hits

    def steps_to_sleep(self, slots: Positions, positions: Positions) -> int:
        """Steps that can surely be skipped: a row gains at most one token a step."""
        if not slots.size or (positions <= self._looked_at[slots]).any():
            return 0
        return max(0, int((self._wake[slots] - positions).min()) - 1)

    def close_windows(self, slots: Iterable[int]) -> None:
        """Tells that nothing of these slots waits any more: only their next firing can inject.

        A window keeps its end: the same position may be computed again and then leave an injection
        waiting.
        """
        for slot in slots:
            clock = self._clocks[slot]
            self._wake[slot] = clock.next_hit(int(self._looked_at[slot]))
