"""What a whole job takes, told from a few of its rows.

Plain arithmetic: knows neither engines nor Ray.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from statistics import fmean, stdev

from negtemp_data.engine.steps import StepLog

_PLAYED_ROWS = 20_000
"""Rows whose places in the batch are played through; what more of them take grows evenly."""


@dataclass(frozen=True)
class Calibration:
    """What a small run of a job was seen to take."""

    prompt_tokens: Sequence[int]
    """Generated tokens of each prompt, over all its rows and attempts."""
    accepted_rows: int
    """Accepted rows."""
    row_steps: Sequence[int]
    """Engine steps from the first to the last token of each row."""
    steps: StepLog
    """What the engine's steps have cost."""
    work_s: float
    """Seconds from the engine's readiness to the last commit."""
    other_s: float
    """Seconds before and after that."""


@dataclass(frozen=True)
class Estimate:
    """What a whole job is expected to take."""

    calibrated_rows: int
    """Rows that this is told from."""
    prompts: int
    """Prompts that can be used."""
    rows: int
    """Their rows."""
    replicas: int
    """Engines that share them."""
    tokens: float
    """Generated tokens, all attempts together."""
    tokens_error: float
    """Half the width of the 95% interval of `tokens`: prompts differ."""
    accepted_rows: float
    """Rows that will pass."""
    seconds: float
    """From the command to its end; every replica is taken to be as fast as the calibrated one."""
    start_s: float
    """Of these, before the first engine is ready and after the last commit."""
    is_full: bool
    """Whether the calibration had as many requests in a batch as the run will have. If not, its
    speed at a full batch is extrapolated."""


def estimate(calibration: Calibration, prompts: int, replicas: int) -> Estimate:
    """Extrapolates to so many prompts on so many engines.

    Time goes by the generator's steps, whose cost is a plane over their number, their requests and
    their prompt tokens (see `StepLog.seconds_of`): the rows of a replica are played through the
    places of its batch, which gives the number of steps, and what the calibration took beyond its
    own steps, a judge with an engine of its own included, is scaled like them.
    """
    n = len(calibration.prompt_tokens)
    rows_per_prompt = len(calibration.row_steps) / n
    rows = round(prompts * rows_per_prompt)
    share = -(-rows // replicas)
    scale = _work(calibration, share) / _work(calibration, len(calibration.row_steps))
    error = 0.0
    if 1 < n < prompts:
        left_out = 1 - n / prompts
        error = 1.96 * stdev(calibration.prompt_tokens) * (left_out / n) ** 0.5 * prompts
    return Estimate(
        calibrated_rows=len(calibration.row_steps),
        prompts=prompts,
        rows=rows,
        replicas=replicas,
        tokens=fmean(calibration.prompt_tokens) * prompts,
        tokens_error=error,
        accepted_rows=calibration.accepted_rows / n * prompts,
        seconds=calibration.other_s + calibration.work_s * scale,
        start_s=calibration.other_s,
        is_full=calibration.steps.most_requests >= min(share, calibration.steps.places),
    )


def _work(calibration: Calibration, rows: int) -> float:
    """Seconds that the generator's steps take for so many rows; never 0."""
    seen = calibration.row_steps
    # Judging, and places that wait for prefills, take steps beyond those of the rows themselves.
    beyond = calibration.steps.steps - count_steps(seen, calibration.steps.places)
    played = min(rows, max(_PLAYED_ROWS, len(seen)))
    order = list(seen)
    if played > len(seen):
        Random(0).shuffle(order)
    steps: float = count_steps(list(islice(cycle(order), played)), calibration.steps.places)
    steps += (rows - played) * fmean(seen) / calibration.steps.places
    steps += beyond * rows / len(seen)
    requests = calibration.steps.requests * rows / len(seen)
    prompt_tokens = calibration.steps.prompt_tokens * rows / len(seen)
    return max(calibration.steps.seconds_of(steps, requests, prompt_tokens), 1e-9)


def count_steps(row_steps: Sequence[int], places: int) -> int:
    """Steps until all rows are through, each of which takes the first place that is free."""
    ends = [0] * min(places, len(row_steps))
    for steps in row_steps:
        heapq.heapreplace(ends, ends[0] + steps)
    return max(ends, default=0)
