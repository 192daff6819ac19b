"""Estimates: a whole job from some of its rows, where the truth is known by construction."""

import random
from itertools import pairwise

import pytest

from negtemp_data.engine.steps import StepLog
from negtemp_data.pipeline.estimate import Calibration, count_steps, estimate


def play(row_steps: list[int], places: int, base_s: float, request_s: float) -> StepLog:
    """The log of an engine whose steps cost base + requests × request_s."""
    log = StepLog()
    waiting, running = list(reversed(row_steps)), []
    while waiting or running:
        while waiting and len(running) < places:
            running.append(waiting.pop())
        n = len(running)
        seconds = base_s + n * request_s
        log += StepLog(1, seconds, n, n * n, n * seconds, n, places)
        running = [left - 1 for left in running if left > 1]
    return log


def calibrated(row_steps: list[int], places: int, **fields: float) -> Calibration:
    log = play(row_steps, places, base_s=0.02, request_s=0.001)
    halves = zip(row_steps[::2], row_steps[1::2], strict=True)
    return Calibration(
        prompt_tokens=[first + second for first, second in halves],
        accepted_rows=int(fields.get("accepted_rows", 0)),
        row_steps=row_steps,
        steps=log,
        work_s=log.seconds + fields.get("beside_s", 0.0),
        other_s=fields.get("other_s", 0.0),
    )


def lengths(n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [min(128, 1 + int(rng.expovariate(1 / 70))) for _ in range(n)]


def test_a_log_knows_the_seconds_of_other_batches() -> None:
    log = play(lengths(60, 0), places=16, base_s=0.02, request_s=0.001)
    assert log.seconds_of(log.steps, log.requests) == pytest.approx(log.seconds)
    assert log.seconds_of(100, 100 * 64) == pytest.approx(100 * (0.02 + 0.064))
    assert log.most_requests == log.places == 16


def test_the_parts_of_a_step_are_never_negative() -> None:
    # Batches that are faster the fuller they are, as when the machine warms up.
    shrinking = StepLog(1, 2.0, 1, 1, 2.0, 1) + StepLog(1, 1.0, 9, 81, 9.0, 9)
    assert shrinking.seconds_of(2, 10_000) == pytest.approx(3.0)
    # A fixed part below zero: all of the time goes by requests.
    steep = StepLog(1, 0.1, 1, 1, 0.1, 1) + StepLog(1, 8.0, 9, 81, 72.0, 9)
    assert steep.seconds_of(2, 10) == pytest.approx(8.1)
    assert steep.seconds_of(2, 0) == 0
    assert StepLog().seconds_of(5, 5) == 0


def test_equal_batches_cost_in_proportion_to_their_steps() -> None:
    log = play([50] * 8, places=8, base_s=0.02, request_s=0.001)
    assert log.seconds_of(2 * log.steps, 2 * log.requests) == pytest.approx(2 * log.seconds)


@pytest.mark.parametrize(
    ("row_steps", "places", "steps"),
    [([3, 1, 2], 2, 3), ([5, 5], 8, 5), ([2] * 7, 3, 6), ([], 4, 0)],
)
def test_rows_take_the_first_free_place(row_steps: list[int], places: int, steps: int) -> None:
    assert count_steps(row_steps, places) == steps


@pytest.mark.parametrize(("n_calibrated", "n_all"), [(48, 96), (64, 2000), (400, 60_000)])
def test_time_is_that_of_the_whole_job(n_calibrated: int, n_all: int) -> None:
    all_lengths = lengths(n_all, 1)
    truth = play(all_lengths, 128, base_s=0.02, request_s=0.001).seconds
    told = estimate(calibrated(lengths(n_calibrated, 2), 128, other_s=20.0), n_all // 2, replicas=1)
    assert told.rows == n_all
    assert told.seconds - told.start_s == pytest.approx(truth, rel=0.15)
    assert told.start_s == 20.0
    assert told.tokens == pytest.approx(sum(all_lengths), rel=0.15)
    assert told.is_full == (n_calibrated >= min(128, n_all))


def test_replicas_share_the_rows() -> None:
    calibration = calibrated(lengths(256, 3), 16)
    seconds = [estimate(calibration, 1280, n).seconds for n in (1, 2, 4)]
    assert seconds[0] / seconds[1] == pytest.approx(2, rel=0.1)
    assert all(more < fewer for fewer, more in pairwise(seconds))


def test_time_beside_the_generators_steps_is_scaled_like_them() -> None:
    alone = estimate(calibrated(lengths(256, 4), 16), 1280, 1)
    judged = estimate(calibrated(lengths(256, 4), 16, beside_s=10.0), 1280, 1)
    assert judged.seconds - alone.seconds == pytest.approx(100, rel=0.1)


def test_accepted_rows_and_the_error_of_the_tokens_go_by_prompts() -> None:
    calibration = calibrated(lengths(200, 5), 16, accepted_rows=150)
    told = estimate(calibration, 1000, 1)
    assert told.accepted_rows == 1500
    assert 0 < told.tokens_error < 0.2 * told.tokens
    whole = estimate(calibration, 100, 1)
    assert whole.tokens_error == 0
    assert whole.tokens == sum(calibration.row_steps)


def test_the_interval_of_the_tokens_covers_the_truth() -> None:
    """Of 400 intervals of 95% at least 350 cover: 380 are expected, σ 4.4; false alarms < 1e-6."""
    rng = random.Random(6)
    population = lengths(2 * 1000, 7)
    prompts = [population[i : i + 2] for i in range(0, 2000, 2)]
    truth = sum(population)
    covered = 0
    for _ in range(400):
        chosen = rng.sample(prompts, 60)
        calibration = calibrated([steps for prompt in chosen for steps in prompt], 16)
        told = estimate(calibration, 1000, 1)
        covered += abs(told.tokens - truth) <= told.tokens_error
    assert covered >= 350
