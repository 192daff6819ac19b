"""A run that stands still is told of once, with the stage that does, and once when it goes on."""

import pytest

from negtemp_data.pipeline.progress import RowCounts
from negtemp_data.pipeline.stall import Stage, StallWatch, Standstill, find_stage


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(clock: Clock, stage: Stage, *steps: tuple[float, int]) -> list[Standstill]:
    """What is told at each (seconds since the start, sign of life)."""
    stalls = StallWatch(clock)
    begin, told = clock.now, []
    for seconds, sign in steps:
        clock.now = begin + seconds
        told.append(stalls.observe(sign, stage))
    return [standstill for standstill in told if standstill is not None]


def test_a_standstill_is_told_once_and_its_end_once(clock: Clock) -> None:
    steps = [(0, 1), (119, 1), (120, 1), (121, 1), (500, 1), (510, 2), (511, 2), (700, 2)]
    assert watch(clock, Stage.JUDGING, *steps) == [
        Standstill(Stage.JUDGING, 120, is_over=False),
        Standstill(Stage.JUDGING, 510, is_over=True),
        Standstill(Stage.JUDGING, 190, is_over=False),
    ]


def test_signs_of_life_put_it_off(clock: Clock) -> None:
    assert not watch(clock, Stage.GENERATING, *((100.0 * n, n) for n in range(50)))


def test_engines_may_take_long_to_start(clock: Clock) -> None:
    steps = [(0, 1), (899, 1)]
    assert not watch(clock, Stage.STARTING, *steps)
    told = watch(clock, Stage.STARTING, *steps, (900, 1))
    assert told == [Standstill(Stage.STARTING, 900, is_over=False)]


@pytest.mark.parametrize(
    ("n_engines", "n_open", "made", "stage"),
    [
        (0, 0, RowCounts(), "starting engines"),
        (0, 8, RowCounts(accepted=3), "starting engines"),
        (1, 0, RowCounts(), "handing out shards"),
        (1, 8, RowCounts(accepted=3, unverified=4), "generating"),
        (1, 8, RowCounts(accepted=3, failed=1, unverified=4), "judging"),
        (1, 8, RowCounts(accepted=3, rejected=4, failed=1), "writing"),
    ],
)
def test_the_stage_is_the_one_that_everything_waits_for(
    n_engines: int, n_open: int, made: RowCounts, stage: str
) -> None:
    assert find_stage(n_engines, n_open, made) == stage
