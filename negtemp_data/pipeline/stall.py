"""Notices when a run stands still, and at which stage."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from negtemp_data.pipeline.progress import RowCounts


class Stage(StrEnum):
    """What a run is busy with, or waits for."""

    STARTING = "starting engines"
    GENERATING = "generating"
    JUDGING = "judging"
    WRITING = "writing"
    HANDING_OUT = "handing out shards"


_START_LIMIT_S = 900.0
"""An engine may load a model of hundreds of gigabytes from a network, then compile it."""

_LIMIT_S = 120.0
"""An engine takes a step a second at least, but for the longest prompts on a CPU, and rows are kept
every two seconds; a judge on a server may need its timeout of a minute, and a second try."""


def find_stage(n_engines: int, n_open: int, made: RowCounts) -> Stage:
    """The stage that everything waits for.

    Args:
        n_engines: Engines that take requests.
        n_open: Planned rows of the shards under way.
        made: Those of them that are made.
    """
    if not n_engines:
        return Stage.STARTING
    if not n_open:
        return Stage.HANDING_OUT
    if made.rows + made.unverified < n_open:
        return Stage.GENERATING
    return Stage.JUDGING if made.unverified else Stage.WRITING


@dataclass(frozen=True)
class Standstill:
    """A stage that does not move."""

    stage: Stage
    seconds: float
    """For how long."""
    is_over: bool
    """Whether the run goes on again."""


class StallWatch:
    """Tells of each standstill once, and of its end once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The run moves at this moment."""
        self._clock = clock
        self._signs: object = None
        self._moved_at = clock()
        self._stalled: Stage | None = None

    @property
    def still_s(self) -> float:
        """Seconds since the last sign of life."""
        return self._clock() - self._moved_at

    def observe(self, signs: object, stage: Stage) -> Standstill | None:
        """Looks at a run; returns what there is to tell.

        Args:
            signs: Whatever changes as long as the run is alive.
            stage: The stage that it is at.
        """
        still_s = self.still_s
        if signs != self._signs:
            self._signs, self._moved_at = signs, self._clock()
            stalled, self._stalled = self._stalled, None
            return Standstill(stalled, still_s, is_over=True) if stalled else None
        limit_s = _START_LIMIT_S if stage is Stage.STARTING else _LIMIT_S
        if self._stalled is not None or still_s < limit_s:
            return None
        self._stalled = stage
        return Standstill(stage, still_s, is_over=False)
