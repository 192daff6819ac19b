"""When rules can fire, from positions alone, on the host.

Firing is a pure function of (seed, rule, position), so the host knows in advance at which steps a
row can be touched. What a firing then does (cooldown, max, waiting for candidates) depends on the
logits and is the sampler's; the host only needs a window that surely contains it. A step outside
every window costs nothing.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from negtemp_data.sampling.philox import Stream, philox
from negtemp_data.sampling.records import BernoulliTrigger, PeriodicTrigger, Rule

Positions = NDArray[np.int64]

_BLOCK = 256
"""Positions worked out at a time for one row."""


def fires(seed: int, rule: Rule, index: int, positions: Positions) -> NDArray[np.bool_]:
    """Whether rule number `index` of a schedule fires at each of `positions`."""
    in_range = positions >= rule.start
    if rule.stop is not None:
        in_range &= positions < rule.stop
    match rule.trigger:
        case PeriodicTrigger(every, jitter):
            period_start = positions - (positions - rule.start) % every
            delay = _words(seed, index, period_start, Stream.JITTER) * (jitter + 1) >> 32
            hit = positions == period_start + delay
        case BernoulliTrigger(rate):
            hit = _words(seed, index, positions, Stream.RATE) < round(rate * 2**32)
    return np.asarray(in_range & hit, dtype=np.bool_)


def _words(seed: int, rule: int, positions: Positions, stream: Stream) -> Positions:
    words = philox(
        seed=torch.tensor(seed),
        token_id=torch.tensor(0),
        position=torch.from_numpy(np.maximum(positions, 0)),
        rule=torch.tensor(rule),
        stream=stream,
    )
    return np.asarray(words.numpy(), dtype=np.int64)


@dataclass
class _Clock:
    """Firings of one row in the block of positions [begin, end)."""

    seed: int
    rules: tuple[Rule, ...]
    begin: int = 0
    end: int = 0
    hits: dict[int, list[int]] = field(default_factory=dict)
    window_end: int = -1

    def fill(self, position: int) -> None:
        """Works out the block that starts at `position`."""
        self.begin, self.end = position, position + _BLOCK
        self.hits = {}
        block = np.arange(self.begin, self.end, dtype=np.int64)
        for index, rule in enumerate(self.rules):
            for hit in block[fires(self.seed, rule, index, block)].tolist():
                self.hits.setdefault(hit, []).append(index)


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

    def due(self, slots: Positions, positions: Positions) -> NDArray[np.intp]:
        """Indices of the rows that have to be looked at.

        A row that is at a position for the second time (a chunk of its prefill, or a step computed
        again) is looked at again.
        """
        return np.flatnonzero(
            (positions >= self._wake[slots]) | (positions <= self._looked_at[slots])
        )

    def look(self, slot: int, position: int) -> tuple[bool, list[int]]:
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
            later = (hit for hit in clock.hits if hit > position)
            self._wake[slot] = min(later, default=clock.end)
        self._looked_at[slot] = position
        return is_open, hits

    def steps_to_sleep(self, slots: Positions, positions: Positions) -> int:
        """Steps that can surely be skipped: a row gains at most one token a step."""
        if not slots.size or (positions <= self._looked_at[slots]).any():
            return 0
        return max(0, int((self._wake[slots] - positions).min()) - 1)

    def close_window(self, slot: int) -> None:
        """Tells that nothing of `slot` waits any more: only its next firing can inject.

        The window keeps its end: the same position may be computed again and then leave an
        injection waiting.
        """
        clock = self._clocks[slot]
        later = (hit for hit in clock.hits if hit > self._looked_at[slot])
        self._wake[slot] = min(later, default=clock.end)
