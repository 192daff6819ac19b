"""Estimates: a whole job from some of its rows, where the truth is known by construction."""

import random
from itertools import pairwise

import pytest

from negtemp_data.engine.steps import StepLog
from negtemp_data.pipeline.estimate import Calibration, count_steps, estimate

BASE_S, REQUEST_S, TOKEN_S = 0.02, 0.001, 0.0001


def play(row_steps: list[int], places: int, seed: int = 0, is_judged: bool = False) -> StepLog:
    """The log of an engine whose steps cost a fixed part, one of requests, one of prompt tokens.

    Args:
        row_steps: Steps of each row.
        places: Requests of a batch, at most.
        seed: Of the prompts' lengths.
        is_judged: Whether each row that ends is followed by a request of one step with a long
            prompt.
    """
    rng = random.Random(seed)
    log = StepLog()
    waiting = [(steps, rng.randint(20, 60)) for steps in reversed(row_steps)]
    running: list[int] = []
    judged: list[int] = []
    while waiting or running or judged:
        prompt_tokens = 0
        now = len(judged)
        prompt_tokens += sum(judged)
        judged = []
        while waiting and len(running) < places - now:
            steps, n_tokens = waiting.pop()
            running.append(steps)
            prompt_tokens += n_tokens
        n = len(running) + now
        seconds = BASE_S + n * REQUEST_S + prompt_tokens * TOKEN_S
        log += StepLog.of_step(n, prompt_tokens, seconds, places)
        if is_judged:
            judged = [rng.randint(200, 400) for left in running if left == 1]
        running = [left - 1 for left in running if left > 1]
    return log


def calibrated(
    row_steps: list[int], places: int, is_judged: bool = False, **fields: float
) -> Calibration:
    log = play(row_steps, places, is_judged=is_judged)
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
    log = play(lengths(60, 0), places=16, is_judged=True)
    own = log.seconds_of(log.steps, log.requests, log.prompt_tokens)
    assert own == pytest.approx(log.seconds)
    told = log.seconds_of(100, 100 * 64, 5000)
    assert told == pytest.approx(100 * BASE_S + 6400 * REQUEST_S + 5000 * TOKEN_S)
    assert log.most_requests == log.places == 16


def test_no_part_of_a_step_is_negative() -> None:
    # Batches that are faster the fuller they are, as when the machine warms up.
    shrinking = StepLog.of_step(1, 0, 2.0, 1) + StepLog.of_step(9, 0, 1.0, 9)
    assert shrinking.seconds_of(2, 10, 0) == pytest.approx(3.0)
    assert shrinking.seconds_of(2, 10_000, 0) == pytest.approx(3.0)
    # A fixed part below zero: all of the time goes by requests.
    steep = StepLog.of_step(1, 0, 0.1, 1) + StepLog.of_step(9, 0, 8.0, 9)
    assert steep.seconds_of(2, 10, 0) == pytest.approx(8.1)
    assert steep.seconds_of(2, 0, 0) == 0
    assert StepLog().seconds_of(5, 5, 5) == 0


def test_equal_batches_cost_in_proportion() -> None:
    log = StepLog()
    for _ in range(50):
        log += StepLog.of_step(8, 0, 0.028, 8)
    assert log.seconds_of(100, 800, 0) == pytest.approx(2 * log.seconds)


@pytest.mark.parametrize(
    ("row_steps", "places", "steps"),
    [([3, 1, 2], 2, 3), ([5, 5], 8, 5), ([2] * 7, 3, 6), ([], 4, 0)],
)
def test_rows_take_the_first_free_place(row_steps: list[int], places: int, steps: int) -> None:
    assert count_steps(row_steps, places) == steps


@pytest.mark.parametrize("is_judged", [False, True])
@pytest.mark.parametrize(("n_calibrated", "n_all"), [(48, 96), (64, 2000), (400, 20_000)])
def test_time_is_that_of_the_whole_job(n_calibrated: int, n_all: int, is_judged: bool) -> None:
    all_lengths = lengths(n_all, 1)
    truth = play(all_lengths, 128, seed=1, is_judged=is_judged).seconds
    calibration = calibrated(lengths(n_calibrated, 2), 128, is_judged, other_s=20.0)
    told = estimate(calibration, n_all // 2, replicas=1)
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
