"""Whole generations: the sampler against the reference, step by step.

The simulated engine does what a real one may: rows join, leave, move and pause; a step may be
computed more than once, of which the last computation counts (so does a chunked prefill, which
computes position 0 once per chunk); and calls are skipped where the sampler says that it can sleep.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import (
    BernoulliTrigger,
    InjectionSampler,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    TokenTable,
    Vocabulary,
)

TABLE = TokenTable(["<s>", "Ġa", "b", "Ġc", "d", "Ġe", "f"], frozenset({0}))
WIDTH = 8
FLAT = [0.0, 1.0, 0.0, 0.5, -0.5, 1.5, 0.0, 0.0]
PEAKED = [0.0, 0.0, 40.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def random_row(generator):
    """Logits that leave one candidate in half of the rows, and none too near a limit."""
    row = generator.integers(-1, 2, WIDTH) + generator.random(WIDTH) * 0.01
    match generator.integers(6):
        case 0 | 1:
            row[generator.integers(WIDTH)] += 30
        case 2:
            row[1:] = -np.inf
        case 3:
            row[generator.random(WIDTH) < 0.4] = -np.inf
    return row.astype(np.float32)


class Request:
    """A request of the simulated engine, and what the reference makes of it."""

    def __init__(self, key, schedule, seed, begin, length):
        self.key, self.schedule, self.seed = key, schedule, seed
        self.position, self.end = begin, begin + length
        self.expected = reference.ReferenceRow(schedule, seed, TABLE)
        self.uncommitted = None
        """Logits of the last computation at the present position."""

    def commit(self):
        if self.uncommitted is not None:
            self.expected.step(self.position, self.uncommitted)
            self.uncommitted = None

    def advance(self):
        self.commit()
        self.position += 1


class Engine:
    """Runs requests through one sampler, with everything that moves a row."""

    def __init__(self, generator, *, honours_sleep, syncs):
        self.generator = generator
        self.honours_sleep = honours_sleep
        self.sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
        # What the sampler does on an accelerator, where it can't ask for values without waiting.
        self.sampler._is_on_host = syncs
        self.running = []
        self.sleep = self.n_calls = 0

    def join(self, request):
        self.running.append(
            (request, self.sampler.open(request.key, request.schedule, request.seed))
        )
        self.sleep = 0

    def leave(self, request):
        self.running = [entry for entry in self.running if entry[0] is not request]
        self.sleep = 0

    def shuffle(self):
        self.generator.shuffle(self.running)
        self.sleep = 0

    def step(self):
        """Computes one step; rows without a request lie between the others."""
        n_rows = len(self.running) + 2
        rows = self.generator.permutation(n_rows)[: len(self.running)]
        logits = np.stack([random_row(self.generator) for _ in range(n_rows)])
        after = torch.from_numpy(logits.copy())
        if self.sleep:
            self.sleep -= 1
        elif self.running:
            self.n_calls += 1
            sleep = self.sampler.step(
                after,
                rows,
                np.array([slot for _, slot in self.running]),
                np.array([request.position for request, _ in self.running]),
            )
            self.sleep = sleep if self.honours_sleep else 0
        for row, (request, _) in zip(rows, self.running, strict=True):
            request.uncommitted = logits[row].tolist()
        others = np.setdiff1d(np.arange(n_rows), rows)
        assert (after.numpy()[others] == logits[others]).all()

    def finish(self, requests):
        for request in requests:
            request.commit()
        traces = self.sampler.take([request.key for request in requests])
        for request in requests:
            found = reference.differences(traces[request.key], request.expected)
            assert found == [], (found, request.schedule, request.seed)


supports = st.sampled_from(
    [Support(), Support(min_p=0.31), Support(top_p=0.87), Support(epsilon=0.137)]
)
vocabularies = st.sampled_from([Vocabulary(), Vocabulary(include=("word_start",))])
small = st.integers(0, 4)
triggers = st.integers(1, 9).flatmap(
    lambda every: st.builds(PeriodicTrigger, st.just(every), st.integers(0, every - 1))
) | st.builds(BernoulliTrigger, st.sampled_from([0.1, 0.3, 1.0]))
rules = st.builds(
    Rule,
    trigger=triggers,
    temperature=st.sampled_from([-1.0, -0.3, 2.0, float("-inf"), 0.0]),
    support=supports,
    vocabulary=vocabularies,
    start=small,
    stop=st.none() | st.integers(1, 20),
    cooldown=small,
    burst=st.integers(1, 4),
    max_injections=st.none() | st.integers(1, 6),
    defer=small,
)
schedules = st.lists(rules, min_size=1, max_size=3).map(lambda each: Schedule(tuple(each)))


@pytest.mark.parametrize("syncs", [True, False], ids=["host", "accelerator"])
@pytest.mark.parametrize("honours_sleep", [False, True], ids=["every step", "sleeping"])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    schedules=st.lists(schedules, min_size=1, max_size=4),
    entropy=st.integers(0, 2**32),
    stall=st.sampled_from([0.0, 0.5]),
    disturbance=st.sampled_from([0.0, 0.15]),
)
def test_traces_equal_the_reference_whatever_the_engine_does(
    *, honours_sleep, syncs, schedules, entropy, stall, disturbance
):
    generator = np.random.default_rng(entropy)
    engine = Engine(generator, honours_sleep=honours_sleep, syncs=syncs)
    # Positions near 256 cross from one block of the timetable to the next.
    waiting = [
        Request(
            f"{index}",
            schedule,
            int(generator.integers(2**63)),
            int(generator.choice([0, 245])),
            int(generator.integers(1, 24)),
        )
        for index, schedule in enumerate(schedules * 2)
    ]
    while waiting or engine.running:
        if waiting and (not engine.running or generator.random() < 0.3):
            engine.join(waiting.pop())
        engine.step()
        for request, _ in list(engine.running):
            if generator.random() >= stall:
                request.advance()
            if request.position >= request.end:
                engine.leave(request)
                engine.finish([request])
            elif generator.random() < disturbance:
                # Preempted: it comes back under the same key, at the same position.
                engine.leave(request)
                waiting.append(request)
        if generator.random() < disturbance:
            engine.shuffle()


def run(rule_or_rules, rows, seed=0, **engine_options):
    """One request over these rows of logits; its trace's positions, rules and deferred count."""
    rules = rule_or_rules if isinstance(rule_or_rules, tuple) else (rule_or_rules,)
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    slot = sampler.open("a", Schedule(rules), seed)
    for position, row in enumerate(rows):
        sampler.step(torch.tensor([row]), np.array([0]), np.array([slot]), np.array([position]))
    trace = sampler.take(["a"])["a"]
    return [(each.position, each.rule) for each in trace.injections], trace.deferred


def positions_of(*args):
    injected, deferred = run(*args)
    return [position for position, _ in injected], deferred


def once(start, **options):
    """A rule that fires once, at `start`, and needs two likely tokens."""
    return Rule(PeriodicTrigger(1000), -1.0, Support(min_p=0.1), start=start, **options)


def test_an_injection_without_two_candidates_waits_and_is_counted_once():
    rows = [FLAT, FLAT, PEAKED, PEAKED, FLAT, FLAT]
    assert positions_of(once(2), rows) == ([4], 1)


def test_an_injection_waits_at_most_defer_steps():
    rows = [PEAKED, PEAKED, PEAKED, FLAT, FLAT]
    assert positions_of(once(0, defer=3), rows) == ([3], 1)
    assert positions_of(once(0, defer=2), rows) == ([], 1)


def test_an_injection_that_may_not_wait_is_dropped_and_not_counted():
    assert positions_of(once(0, defer=0), [PEAKED, FLAT, FLAT]) == ([], 0)


def test_a_burst_injects_consecutive_tokens():
    assert positions_of(once(1, burst=3), [FLAT] * 8) == ([1, 2, 3], 0)


def test_each_injection_of_a_burst_may_wait():
    rows = [FLAT, PEAKED, FLAT, PEAKED, PEAKED, FLAT, FLAT]
    assert positions_of(once(0, burst=3, defer=2), rows) == ([0, 2, 5], 2)


def test_an_injection_that_never_finds_candidates_ends_its_burst():
    rows = [FLAT, PEAKED, PEAKED, FLAT, FLAT]
    assert positions_of(once(0, burst=3, defer=1), rows) == ([0], 1)


def test_a_cooldown_counts_tokens_after_the_burst():
    rule = Rule(PeriodicTrigger(1), -1.0, burst=2, cooldown=3)
    assert positions_of(rule, [FLAT] * 12) == ([0, 1, 5, 6, 10, 11], 0)


def test_a_firing_during_a_burst_does_not_prolong_it():
    rule = Rule(PeriodicTrigger(2), -1.0, burst=3, cooldown=4)
    assert positions_of(rule, [FLAT] * 12) == ([0, 1, 2, 8, 9, 10], 0)


def test_a_firing_replaces_an_injection_that_waits():
    # The first firing could wait until 4, the second (at 3) until 7.
    rule = Rule(PeriodicTrigger(3), -1.0, Support(min_p=0.1), stop=4, defer=4)
    assert positions_of(rule, [PEAKED] * 6 + [FLAT] * 3) == ([6], 2)


def test_max_caps_the_tokens_of_a_sample_even_within_a_burst():
    rule = Rule(PeriodicTrigger(4), -1.0, burst=2, max_injections=3)
    assert positions_of(rule, [FLAT] * 16) == ([0, 1, 4], 0)


def test_the_first_due_rule_wins_and_a_later_firing_is_lost():
    first = Rule(PeriodicTrigger(2), -1.0)
    second = Rule(PeriodicTrigger(4), -1.0)
    third = Rule(PeriodicTrigger(3), -1.0)
    injected, deferred = run((first, second, third), [FLAT] * 8)
    assert injected == [(0, 0), (2, 0), (3, 2), (4, 0), (6, 0)]
    assert deferred == 0


def test_a_waiting_rule_keeps_its_place_before_later_rules():
    second = Rule(PeriodicTrigger(1), -1.0)
    injected, deferred = run((once(1), second), [FLAT, PEAKED, PEAKED, FLAT, FLAT])
    assert injected == [(0, 1), (3, 0), (4, 1)]
    assert deferred == 1


def test_stop_ends_firings_but_not_a_burst_under_way():
    rule = Rule(PeriodicTrigger(2), -1.0, burst=2, start=2, stop=5)
    assert positions_of(rule, [FLAT] * 9) == ([2, 3, 4, 5], 0)


@pytest.mark.parametrize("first", [FLAT, PEAKED])
@pytest.mark.parametrize("last", [FLAT, PEAKED])
@pytest.mark.parametrize("burst", [1, 2])
def test_only_the_last_computation_of_a_position_counts(first, last, burst):
    rule = once(0, defer=3, burst=burst)
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    slot = np.array([sampler.open("a", Schedule((rule,)), 0)])
    expected = reference.ReferenceRow(Schedule((rule,)), 0, TABLE)
    for position, row in enumerate([PEAKED, last, PEAKED, FLAT, FLAT]):
        if position == 1:
            for _ in range(2):
                sampler.step(torch.tensor([first]), np.zeros(1, int), slot, np.array([1]))
        sampler.step(torch.tensor([row]), np.zeros(1, int), slot, np.array([position]))
        expected.step(position, row)
    assert reference.differences(sampler.take(["a"])["a"], expected) == []


def test_rows_that_can_not_inject_let_the_sampler_sleep():
    rule = Rule(PeriodicTrigger(100), -1.0, burst=3, start=50)
    engine = Engine(np.random.default_rng(0), honours_sleep=True, syncs=True)
    request = Request("a", Schedule((rule,)), 1, 0, 700)
    engine.join(request)
    while request.position < request.end:
        engine.step()
        request.advance()
    engine.finish([request])
    assert len(request.expected.injections) > 10
    assert engine.n_calls < 100


def test_an_open_request_keeps_its_slot_and_its_state():
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    schedule = Schedule((Rule(PeriodicTrigger(1), -1.0, max_injections=2),))
    for position in range(4):
        slot = sampler.open("a", schedule, 5)
        sampler.step(torch.tensor([FLAT]), np.zeros(1, int), np.array([slot]), np.array([position]))
    trace = sampler.take(["a"])["a"]
    assert [injection.position for injection in trace.injections] == [0, 1]


def test_a_slot_starts_clean_after_its_request_is_taken():
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    greedy_once = Schedule((Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.1), max_injections=1),))
    traces = []
    for _ in range(3):
        slot = sampler.open("a", greedy_once, 5)
        for position, row in enumerate([PEAKED, FLAT, FLAT]):
            sampler.step(
                torch.tensor([row]), np.zeros(1, int), np.array([slot]), np.array([position])
            )
        traces.append(sampler.take(["a"])["a"])
    assert [injection.position for injection in traces[0].injections] == [1]
    assert traces[0].deferred == 1
    assert traces[1:] == [traces[0]] * 2
