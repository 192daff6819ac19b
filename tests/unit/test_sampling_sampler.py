"""Requests side by side: none feels the others, and none leaves anything behind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.sampling import (
    InjectionSampler,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    TokenTable,
    Vocabulary,
)

WIDTH = 40
TABLE = TokenTable(["<s>"] + [f"Ġ{i}" if i % 2 else f"{i}" for i in range(1, 38)], frozenset({0}))
SCHEDULES = [
    Schedule((Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.01)),)),
    Schedule((Rule(PeriodicTrigger(2), -0.5, Support(top_p=0.9)), Rule(PeriodicTrigger(1), 2.0))),
    Schedule((Rule(PeriodicTrigger(1), float("-inf"), Support(top_k=5)),)),
    Schedule((Rule(PeriodicTrigger(1), -3.0, Support(top_n_sigma=2.0, epsilon=1e-4)),)),
    Schedule((Rule(PeriodicTrigger(1), -1.0, vocabulary=Vocabulary(include=("word_start",))),)),
]


def new_sampler():
    return InjectionSampler(TABLE, WIDTH, torch.device("cpu"))


def tokens_of(sampler, keys):
    traces = sampler.take(keys)
    return [[injection.token_id for injection in traces[key].injections] for key in keys]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(entropy=st.integers(0, 2**32), n_others=st.integers(0, 30))
def test_an_injection_does_not_depend_on_the_batch_around_it(entropy, n_others):
    generator = np.random.default_rng(entropy)
    n = n_others + 1
    logits = generator.normal(0, 3, (n, WIDTH)).astype(np.float32)
    seeds = generator.integers(0, 2**63, n).tolist()
    schedules = [SCHEDULES[i] for i in generator.integers(0, len(SCHEDULES), n)]
    positions = generator.integers(0, 300, n)
    keys = [str(i) for i in range(n)]

    alone = []
    for i in range(n):
        sampler = new_sampler()
        slot = sampler.open(keys[i], schedules[i], seeds[i])
        after = torch.from_numpy(logits[i : i + 1].copy())
        sampler.step(after, np.zeros(1, int), np.array([slot]), positions[i : i + 1])
        alone.append((sampler.take([keys[i]])[keys[i]], after[0].tolist()))

    sampler = new_sampler()
    order = generator.permutation(n)
    slots = {i: sampler.open(keys[i], schedules[i], seeds[i]) for i in generator.permutation(n)}
    after = torch.from_numpy(logits[order])
    rows = generator.permutation(n)
    sampler.step(after, rows, np.array([slots[i] for i in order[rows]]), positions[order[rows]])
    traces = sampler.take(keys)
    for row, i in enumerate(order):
        trace, alone_after = alone[i]
        together = traces[keys[i]]
        assert after[row].tolist() == alone_after
        assert together.deferred == trace.deferred
        for ours, theirs in zip(together.injections, trace.injections, strict=True):
            assert ours._replace(entropy=0, logprob=0) == theirs._replace(entropy=0, logprob=0)
            # Sums over a row may be split otherwise in a batch of another shape.
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-5)


def test_requests_with_one_seed_are_twins_where_their_logits_agree():
    sampler = new_sampler()
    keys = ["a", "b", "c"]
    seeds = [8, 8, 9]
    slots = np.array(
        [sampler.open(key, SCHEDULES[0], seed) for key, seed in zip(keys, seeds, strict=True)]
    )
    for position in range(30):
        sampler.step(torch.zeros(3, WIDTH), np.arange(3), slots, np.full(3, position))
    first, second, third = tokens_of(sampler, keys)
    assert first == second
    assert first != third


def test_taking_some_requests_leaves_the_others_running():
    sampler = new_sampler()
    slots = {key: sampler.open(key, SCHEDULES[0], 1) for key in "abc"}
    for position in range(4):
        here = list(slots.values())
        rows = np.arange(len(here))
        sampler.step(
            torch.zeros(len(here), WIDTH), rows, np.array(here), np.full(len(here), position)
        )
        if position == 1:
            assert [len(tokens) for tokens in tokens_of(sampler, ["b"])] == [2]
            del slots["b"]
    assert [len(tokens) for tokens in tokens_of(sampler, ["a", "b", "c"])] == [4, 0, 4]


def test_taking_a_request_that_is_not_open_gives_an_empty_trace():
    assert new_sampler().take(["nobody"]) == {"nobody": ([], 0)}


def test_a_schedule_without_rules_never_injects():
    sampler = new_sampler()
    slots = np.array([sampler.open("a", Schedule(()), 1), sampler.open("b", SCHEDULES[0], 1)])
    for position in range(3):
        sampler.step(torch.zeros(2, WIDTH), np.arange(2), slots, np.full(2, position))
    assert [len(tokens) for tokens in tokens_of(sampler, ["a", "b"])] == [0, 3]


def test_schedules_of_more_rules_join_while_others_run():
    sampler = new_sampler()
    slots = [sampler.open("a", SCHEDULES[0], 1)]
    sampler.step(torch.zeros(1, WIDTH), np.arange(1), np.array(slots), np.zeros(1, int))
    slots.append(sampler.open("b", SCHEDULES[1], 1))
    sampler.step(torch.zeros(2, WIDTH), np.arange(2), np.array(slots), np.array([1, 0]))
    sampler.step(torch.zeros(2, WIDTH), np.arange(2), np.array(slots), np.array([2, 1]))
    traces = sampler.take(["a", "b"])
    assert [injection.rule for injection in traces["a"].injections] == [0, 0, 0]
    assert [injection.rule for injection in traces["b"].injections] == [0, 1]


def cycle(sampler, name, n_requests, n_steps=3):
    """Opens, runs and takes requests together; returns their slots."""
    keys = [f"{name}/{i}" for i in range(n_requests)]
    slots = np.array([sampler.open(key, SCHEDULES[i % 5], i) for i, key in enumerate(keys)])
    for position in range(n_steps):
        batch = torch.zeros(n_requests, WIDTH)
        sampler.step(batch, np.arange(n_requests), slots, np.full(n_requests, position))
    sampler.take(keys)
    return slots.tolist()


def test_slots_never_exceed_the_peak_number_of_open_requests():
    sampler = new_sampler()
    peak = 9
    sizes = [3, peak, 1, 7, peak, 2] * 10
    used = {slot for i, size in enumerate(sizes) for slot in cycle(sampler, i, size)}
    assert used == set(range(peak))


def test_many_requests_one_after_the_other_leave_the_state_as_small_as_a_few():
    def held(sampler):
        states, timetable = sampler._states, sampler._timetable
        return (
            states.seed_S.numel(),
            states._state_2SMF.numel(),
            timetable._wake.size,
            len(timetable._clocks),
            len(sampler._slots),
            len(sampler._injections),
            len(sampler._log),
            len(sampler._rules.rules),
        )

    sampler = new_sampler()
    cycle(sampler, "first", 5)
    before = held(sampler)
    for i in range(60):
        cycle(sampler, i, 5)
    assert held(sampler) == before


def test_more_requests_than_the_first_allotment_of_slots_are_served():
    sampler = new_sampler()
    assert sorted(cycle(sampler, "many", 150, n_steps=1)) == list(range(150))


IMPOSSIBLE = Schedule(
    (Rule(PeriodicTrigger(1), -1.0, vocabulary=Vocabulary(("special",), ("special",))),)
)


def test_a_schedule_that_this_model_can_not_carry_out_is_refused():
    sampler = new_sampler()
    with pytest.raises(ValueError, match="fewer than two tokens"):
        sampler.check(IMPOSSIBLE)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        sampler.open("a", IMPOSSIBLE, 1)
    sampler.check(SCHEDULES[4])


def test_a_refused_request_uses_up_no_slot():
    sampler = new_sampler()
    cycle(sampler, "first", 1)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        sampler.open("bad", IMPOSSIBLE, 1)
    assert cycle(sampler, "second", 1) == [0]
