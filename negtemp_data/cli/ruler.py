"""A line of token positions to draw schedules on.

Positions fall into columns, one or more to a column. Knows nothing of jobs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

_BARS = "▁▂▃▄▅▆▇█"
_MIN_COLUMNS_PER_NUMBER = 8


@dataclass(frozen=True)
class Ruler:
    """Positions 0 to `length` − 1 on at most `width` columns."""

    length: int
    width: int

    @property
    def columns(self) -> int:
        """Columns in use."""
        return min(self.length, self.width)

    def marks(self, positions: Iterable[int]) -> str:
        """▲ at the columns of these positions."""
        marked = {self._column(position) for position in positions}
        return "".join("▲" if column in marked else "·" for column in range(self.columns))

    def band(self, start: int, stop: int) -> str:
        """░ at the columns of the positions from `start` on and before `stop`."""
        first, last = self._column(start), self._column(min(stop, self.length) - 1)
        return "".join("░" if first <= column <= last else "·" for column in range(self.columns))

    def bars(self, temperatures: Sequence[float]) -> str:
        """A bar for each column, the higher the hotter; negative is hotter than infinite.

        Args:
            temperatures: One for each position. A column shows its hottest.
        """
        heats = [heat(temperature) for temperature in temperatures]
        tops = [-1.0] * self.columns
        for position, value in enumerate(heats):
            column = self._column(position)
            tops[column] = max(tops[column], value)
        low, high = min(tops), max(tops)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((top - low) * scale)] for top in tops)

    def scale(self) -> str:
        """Numbers below the columns of round positions."""
        steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
        step = next(s for s in steps if s * self.columns >= _MIN_COLUMNS_PER_NUMBER * self.length)
        line = ""
        for position in range(0, self.length, step):
            line = line.ljust(self._column(position)) + str(position)
        return line

    def _column(self, position: int) -> int:
        return position * self.columns // self.length


def heat(temperature: float) -> float:
    """Where a temperature stands from the coldest, 0, over ±inf at ½ to T → 0⁻ at 1.

    It falls with β = 1/T, in which temperatures of both signs are one line: (1 − β/(1 + |β|))/2.
    """
    if temperature == 0:
        return 0.0
    return (1 - math.copysign(1 / (1 + abs(temperature)), temperature)) / 2
