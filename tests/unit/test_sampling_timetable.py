"""When rules fire: periods, jitter and rates against the reference and against chance.

Every alpha is 1e-6, and seeds are fixed, so a test that passes once passes always.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from negtemp_data.sampling import (
    BernoulliTrigger,
    PeriodicTrigger,
    PositionTrigger,
    Rule,
    Schedule,
    fires,
)
from reference_triggers import fires_at
from sampling_cases import IMPLEMENTATIONS, TOKENS, WIDTH, no_text

ALPHA = 1e-6

triggers = st.integers(1, 40).flatmap(
    lambda every: st.builds(PeriodicTrigger, st.just(every), st.integers(0, every - 1))
) | st.builds(BernoulliTrigger, st.floats(0.01, 1.0))
triggers |= st.builds(
    PositionTrigger, st.lists(st.integers(0, 2**20) | st.integers(0, 120), max_size=9).map(tuple)
)
rules = st.builds(
    Rule,
    trigger=triggers,
    temperature=st.just(-1.0),
    start=st.integers(0, 60),
    stop=st.none() | st.integers(1, 120),
)


def firing_positions(rule, seed=0, index=0, end=10_000):
    return np.flatnonzero(fires(seed, rule, index, np.arange(end))).tolist()


@settings(max_examples=150, derandomize=True)
@given(
    rule=rules,
    seed=st.integers(0, 2**63 - 1),
    index=st.integers(0, 5),
    begin=st.integers(0, 2**20),
)
def test_firings_equal_the_reference(rule, seed, index, begin):
    for positions in (np.arange(100), np.arange(begin, begin + 50)):
        expected = [fires_at(seed, rule, index, int(n)) for n in positions]
        assert fires(seed, rule, index, positions).tolist() == expected


@settings(max_examples=50, derandomize=True)
@given(rule=rules, seed=st.integers(0, 2**63 - 1), cut=st.integers(0, 200))
def test_firings_do_not_depend_on_which_positions_are_asked_for(rule, seed, cut):
    whole = fires(seed, rule, 0, np.arange(200))
    assert fires(seed, rule, 0, np.arange(cut, 200)).tolist() == whole[cut:].tolist()


def test_a_period_without_jitter_fires_at_its_start():
    assert firing_positions(Rule(PeriodicTrigger(7), -1.0, start=3), end=25) == [3, 10, 17, 24]


@pytest.mark.parametrize(("every", "jitter"), [(1, 0), (5, 4), (24, 4), (10, 9)])
def test_each_period_has_exactly_one_firing(every, jitter):
    rule = Rule(PeriodicTrigger(every, jitter), -1.0, start=8)
    positions = np.array(firing_positions(rule, seed=11, end=8 + 300 * every))
    assert ((positions - 8) // every).tolist() == list(range(300))
    assert ((positions - 8) % every).max() <= jitter


def test_jitter_is_uniform():
    rule = Rule(PeriodicTrigger(10, 6), -1.0, start=2)
    late = (np.array(firing_positions(rule, seed=12, end=200_000)) - 2) % 10
    counts = np.bincount(late)
    assert counts.size == 7
    assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_a_rate_fires_binomially_and_without_memory(rate):
    n = 50_000
    fired = fires(13, Rule(BernoulliTrigger(rate), -1.0), 0, np.arange(n))
    assert stats.binomtest(int(fired.sum()), n, rate).pvalue > ALPHA
    pairs = np.bincount(2 * fired[::2].astype(int) + fired[1::2], minlength=4)
    expected = [(1 - rate) ** 2, rate * (1 - rate), rate * (1 - rate), rate**2]
    assert stats.chisquare(pairs, n / 2 * np.array(expected)).pvalue > ALPHA


def test_a_rate_of_one_fires_always_and_of_zero_never():
    assert fires(14, Rule(BernoulliTrigger(1.0), -1.0), 0, np.arange(2000)).all()
    assert not fires(14, Rule(BernoulliTrigger(0.0), -1.0), 0, np.arange(2000)).any()


def test_positions_fire_where_they_say_in_any_order_and_once():
    rule = Rule(PositionTrigger((7, 0, 7, 300)), -1.0)
    assert firing_positions(rule) == [0, 7, 300]
    assert firing_positions(Rule(PositionTrigger(()), -1.0)) == []


@pytest.mark.parametrize(
    "trigger",
    [PeriodicTrigger(3, 1), BernoulliTrigger(0.9), PositionTrigger(tuple(range(0, 100, 2)))],
)
def test_nothing_fires_before_start_or_from_stop_on(trigger):
    positions = firing_positions(Rule(trigger, -1.0, start=20, stop=50))
    assert 20 <= min(positions) <= max(positions) < 50
    assert len(positions) >= 9


@pytest.mark.parametrize("trigger", [PeriodicTrigger(10, 9), BernoulliTrigger(0.3)])
def test_seed_and_rule_index_each_change_the_firings(trigger):
    rule = Rule(trigger, -1.0)
    variants = {
        tuple(firing_positions(rule, seed, index, end=300))
        for seed, index in [(0, 0), (1, 0), (2**32, 0), (0, 1)]
    }
    assert len(variants) == 4


@settings(max_examples=20, derandomize=True)
@given(rule=rules, seed=st.integers(0, 2**63 - 1), begin=st.sampled_from([0, 200, 255, 256, 1000]))
def test_a_row_sleeps_only_through_positions_without_a_firing(rule, seed, begin):
    # All logits are equal, so a firing injects at once.
    sampler = IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)
    slots = np.array([sampler.open("a", Schedule((rule,)), seed)])
    position, end, n_calls = begin, begin + 300, 0
    while position < end:
        n_calls += 1
        logits = torch.zeros(1, WIDTH)
        here = np.array([position])
        position += 1 + sampler.step(logits, np.zeros(1, int), slots, here, no_text)
    injected = [each.position for each in sampler.take(["a"])["a"].injections]
    expected = begin + np.flatnonzero(fires(seed, rule, 0, np.arange(begin, end)))
    assert injected == expected.tolist()
    # One call for each firing, and one for each block of positions worked out together.
    assert n_calls <= 2 * len(injected) + 5
