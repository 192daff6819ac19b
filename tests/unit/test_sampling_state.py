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
    AnnealedTemperature,
    BernoulliTrigger,
    DynamicTemperature,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    Siblings,
    Support,
    TextTrigger,
    Vocabulary,
)
from reference_supports import ReferenceTokens
from sampling_cases import IMPLEMENTATIONS, is_same_bits, no_text

TOKENS = ReferenceTokens(
    texts=(b"<s>", b" a", b"b", b". ", b".", b"\n", b"7"),
    special_ids=frozenset({0}),
    classes={"digits": frozenset({6}), "english": frozenset({1, 2, 3, 5})},
)
WIDTH = 8
FLAT = [0.0, 1.0, 0.0, 0.5, -0.5, 1.5, 0.0, 0.0]
PEAKED = [0.0, 0.0, 40.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def random_row(generator):
    """Logits that leave one candidate in half of the rows, and few too near a limit."""
    row = generator.integers(-1, 2, WIDTH) + generator.random(WIDTH) * 0.01
    match generator.integers(6):
        case 0 | 1:
            row[generator.integers(WIDTH)] += 30
        case 2:
            row[1:] = -np.inf
        case 3:
            row[generator.random(WIDTH) < 0.4] = -np.inf
    return row.astype(np.float32)


def reads_text(schedule):
    return any(isinstance(rule.trigger, TextTrigger) for rule in schedule.rules)


class Request:
    """A request of the simulated engine, and what the reference makes of it."""

    def __init__(self, key, schedule, seed, begin, length):
        self.key, self.schedule, self.seed = key, schedule, seed
        # Text from before the first step that it sees is none of the sampler's.
        self.position = 0 if reads_text(schedule) else begin
        self.end = self.position + length
        self.siblings = Siblings(seed % 3, seed % 5)
        self.expected = reference.ReferenceRow(schedule, seed, TOKENS, self.siblings)
        self.tokens = []
        self.computed = None
        """Logits of the last computation at the present position, before and after."""

    def commit(self):
        """Takes the last computation for good."""
        if self.computed is None:
            return
        before, after = self.computed
        step = self.expected.step(self.position, before.tolist(), self.tokens)
        if self.expected.is_sure:
            assert step.difference(before.tolist(), after.tolist()) is None, self.schedule
        self.computed = None

    def advance(self, generator):
        """Takes the last computation, and some token that it left."""
        after = self.computed[1]
        self.commit()
        left = np.flatnonzero(np.isfinite(after))
        self.tokens.append(int(generator.choice(left)) if left.size else 0)
        self.position += 1


class Engine:
    """Runs requests through one sampler, with everything that moves a row."""

    def __init__(self, implementation, generator, *, honours_sleep):
        self.implementation, self.generator = implementation, generator
        self.honours_sleep = honours_sleep
        self.sampler = implementation.sampler(TOKENS, WIDTH)
        self.running = []
        self.sleep = self.n_calls = 0

    def join(self, request):
        slot = self.sampler.open(request.key, request.schedule, request.seed, request.siblings)
        self.running.append((request, slot))
        self.sleep = 0

    def leave(self, request):
        self.running = [entry for entry in self.running if entry[0] is not request]
        self.sleep = 0

    def shuffle(self):
        self.generator.shuffle(self.running)
        self.sleep = 0

    def last_tokens(self, indices):
        """Last tokens of the running requests at these places; nonsense where there is none."""
        requests = [self.running[i][0] for i in indices]
        last = [request.tokens[-1] if request.tokens else -1 for request in requests]
        return torch.tensor(last, dtype=torch.int64, device=self.implementation.device)

    def step(self):
        """Computes one step; rows without a request lie between the others."""
        n_rows = len(self.running) + 2
        rows = self.generator.permutation(n_rows)[: len(self.running)]
        logits = np.stack([random_row(self.generator) for _ in range(n_rows)])
        after = self.implementation.tensor(logits)
        if self.sleep:
            self.sleep -= 1
        elif self.running:
            self.n_calls += 1
            sleep = self.sampler.step(
                after,
                rows,
                np.array([slot for _, slot in self.running]),
                np.array([request.position for request, _ in self.running]),
                self.last_tokens,
            )
            self.sleep = sleep if self.honours_sleep else 0
        after = after.cpu().numpy()
        for row, (request, _) in zip(rows, self.running, strict=True):
            request.computed = logits[row], after[row]
        others = np.setdiff1d(np.arange(n_rows), rows)
        assert is_same_bits(after[others], logits[others])

    def finish(self, requests):
        for request in requests:
            request.commit()
        traces = self.sampler.take([request.key for request in requests])
        for request in requests:
            if request.expected.is_sure:
                found = reference.differences(traces[request.key], request.expected)
                assert found == [], (found, request.schedule, request.seed)


supports = st.sampled_from(
    [Support(), Support(min_p=0.31), Support(top_p=0.87), Support(epsilon=0.137), Support(xtc=0.09)]
)
vocabularies = st.sampled_from([Vocabulary(), Vocabulary(include=("english",))])
small = st.integers(0, 4)
triggers = st.one_of(
    st.integers(1, 9).flatmap(
        lambda every: st.builds(PeriodicTrigger, st.just(every), st.integers(0, every - 1))
    ),
    st.builds(BernoulliTrigger, st.sampled_from([0.1, 0.3, 1.0])),
    st.builds(PositionTrigger, st.sampled_from([(0, 3, 4), (2, 7, 250), (1, 246, 257)])),
    st.builds(EntropyTrigger, above=st.sampled_from([0.3, 1.6])),
    st.builds(EntropyTrigger, below=st.sampled_from([0.3, 1.6])),
    st.builds(MarginTrigger, st.sampled_from([0.07, 0.5])),
    st.sampled_from(["sentence", "line", "word"]).map(TextTrigger),
    st.sampled_from(["b.", ". ", "b"]).map(lambda text: TextTrigger("literal", text)),
)
rules = st.builds(
    Rule,
    trigger=triggers,
    temperature=st.sampled_from([-1.0, -0.3, 2.0, float("-inf"), 0.0]),
    support=supports,
    vocabulary=vocabularies,
    guard=st.sampled_from([(), (), ("digits",), ("english",)]),
    is_distinct=st.booleans(),
    start=small,
    stop=st.none() | st.integers(1, 20),
    cooldown=small,
    burst=st.integers(1, 4),
    max_injections=st.none() | st.integers(1, 6),
    defer=small,
)
bases = st.sampled_from(
    [
        (),
        (),
        (Piece(-1.0, until=3, support=Support(min_p=0.05)), Piece(2.0, top_k=3)),
        (Piece(AnnealedTemperature(1.5, 0.5, 8, "cosine"), until=250), Piece(1.0)),
        (Piece(DynamicTemperature(0.5, 2.0), vocabulary=Vocabulary(include=("english",))),),
    ]
)
schedules = st.builds(Schedule, st.lists(rules, max_size=3).map(tuple), bases)


def play(implementation, schedules, entropy, *, stall, disturbance, honours_sleep):
    """Compares two generations of each schedule, in one batch; returns the requests."""
    generator = np.random.default_rng(entropy)
    engine = Engine(implementation, generator, honours_sleep=honours_sleep)
    # Positions near 256 cross from one block of the timetable to the next.
    requests = [
        Request(
            f"{index}",
            schedule,
            int(generator.integers(2**63)),
            int(generator.choice([0, 245])),
            int(generator.integers(1, 24)),
        )
        for index, schedule in enumerate(schedules * 2)
    ]
    waiting = list(requests)
    while waiting or engine.running:
        if waiting and (not engine.running or generator.random() < 0.3):
            engine.join(waiting.pop())
        engine.step()
        for request, _ in list(engine.running):
            if generator.random() >= stall:
                request.advance(generator)
            if request.position >= request.end:
                engine.leave(request)
                engine.finish([request])
            elif generator.random() < disturbance:
                # Preempted: it comes back under the same key, at the same position.
                engine.leave(request)
                waiting.append(request)
        if generator.random() < disturbance:
            engine.shuffle()
    return requests


@settings(max_examples=30, derandomize=True)
@given(
    schedules=st.lists(schedules, min_size=1, max_size=4),
    entropy=st.integers(0, 2**32),
    stall=st.sampled_from([0.0, 0.5]),
    disturbance=st.sampled_from([0.0, 0.15]),
    honours_sleep=st.booleans(),
)
def test_generations_equal_the_reference_whatever_the_engine_does(
    *, implementation, schedules, entropy, stall, disturbance, honours_sleep
):
    play(
        implementation,
        schedules,
        entropy,
        stall=stall,
        disturbance=disturbance,
        honours_sleep=honours_sleep,
    )


def test_the_reference_is_sure_of_most_generations():
    """Else they would be compared with nothing."""
    rules = [
        Rule(PeriodicTrigger(3, 1), -1.0, Support(min_p=0.31), defer=3, burst=2),
        Rule(BernoulliTrigger(0.3), float("-inf"), Support(top_p=0.87), cooldown=2),
        Rule(EntropyTrigger(above=0.3), 2.0, Support(xtc=0.09), guard=("digits",)),
        Rule(TextTrigger("word"), -0.3, Support(epsilon=0.137), is_distinct=True),
    ]
    requests = [
        request
        for entropy in range(25)
        for request in play(
            IMPLEMENTATIONS["host"],
            [Schedule((rule,)) for rule in rules],
            entropy,
            stall=0.0,
            disturbance=0.15,
            honours_sleep=True,
        )
    ]
    sure = [request.expected for request in requests if request.expected.is_sure]
    assert len(sure) > 0.9 * len(requests)
    assert sum(len(expected.injections) for expected in sure) > 200


def run(rule_or_rules, rows, seed=0):
    """One request over these rows of logits; its trace's positions, rules and deferred count."""
    rules = rule_or_rules if isinstance(rule_or_rules, tuple) else (rule_or_rules,)
    sampler = IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)
    slot = sampler.open("a", Schedule(rules), seed)
    for position, row in enumerate(rows):
        step_alone(sampler, slot, position, row)
    trace = sampler.take(["a"])["a"]
    return [(each.position, each.rule) for each in trace.injections], trace.deferred


def step_alone(sampler, slot, position, row):
    """One step of a batch of one."""
    logits = torch.tensor([row])
    sampler.step(logits, np.zeros(1, int), np.array([slot]), np.array([position]), no_text)


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


def test_a_burst_goes_on_where_the_condition_no_longer_holds():
    rule = Rule(EntropyTrigger(above=1.5), -1.0, burst=3)
    narrow = [-30.0, 1.0, 0.9, 0.8, -30.0, -30.0, -30.0, -30.0]
    assert positions_of(rule, [narrow, FLAT, narrow, narrow, narrow, FLAT]) == ([1, 2, 3, 5], 0)


def test_an_injection_that_waits_needs_no_condition_again():
    # It fires where the model is certain, and finds its candidates where it is not.
    rule = Rule(EntropyTrigger(below=0.1), -1.0, Support(min_p=0.1), defer=2)
    assert positions_of(rule, [FLAT, PEAKED, PEAKED, FLAT, FLAT]) == ([3], 2)


def test_a_guarded_token_makes_an_injection_wait():
    guarded = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    rule = once(0, guard=("digits",), defer=2)
    assert positions_of(rule, [guarded, guarded, FLAT, FLAT]) == ([2], 1)
    assert positions_of(once(0, guard=("digits",), defer=0), [guarded, FLAT]) == ([], 0)


def test_positions_fire_within_start_and_stop_only():
    rule = Rule(PositionTrigger((0, 2, 5, 9)), -1.0, start=1, stop=9)
    assert positions_of(rule, [FLAT] * 12) == ([2, 5], 0)


def test_a_cooldown_and_a_maximum_hold_for_conditions_on_the_logits():
    rule = Rule(EntropyTrigger(above=0.5), -1.0, cooldown=2, max_injections=3)
    assert positions_of(rule, [FLAT] * 12) == ([0, 3, 6], 0)


@pytest.mark.parametrize("first", [FLAT, PEAKED])
@pytest.mark.parametrize("last", [FLAT, PEAKED])
@pytest.mark.parametrize("burst", [1, 2])
@pytest.mark.parametrize(
    "trigger", [PositionTrigger((0,)), EntropyTrigger(below=0.1), EntropyTrigger(above=1.0)]
)
def test_only_the_last_computation_of_a_position_counts(first, last, burst, trigger):
    schedule = Schedule((Rule(trigger, -1.0, Support(min_p=0.1), defer=3, burst=burst),))
    sampler = IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)
    slot = sampler.open("a", schedule, 0)
    expected = reference.ReferenceRow(schedule, 0, TOKENS)
    for position, row in enumerate([PEAKED, last, PEAKED, FLAT, FLAT]):
        if position == 1:
            for _ in range(2):
                step_alone(sampler, slot, position, first)
        step_alone(sampler, slot, position, row)
        expected.step(position, row)
    assert reference.differences(sampler.take(["a"])["a"], expected) == []


def test_text_is_read_once_where_a_position_is_computed_again():
    schedule = Schedule((Rule(TextTrigger("literal", "bb"), -1.0),))
    sampler = IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)
    slots = np.array([sampler.open("a", schedule, 0)])
    for position, n_times in enumerate([1, 3, 1]):
        for _ in range(n_times):
            sampler.step(
                torch.tensor([FLAT]),
                np.zeros(1, int),
                slots,
                np.array([position]),
                lambda _: torch.tensor([2 if position == 1 else 1]),  # noqa: B023
            )
    assert sampler.take(["a"])["a"].injections == []


def test_rows_that_can_not_inject_let_the_sampler_sleep(implementation):
    rule = Rule(PeriodicTrigger(100), -1.0, burst=3, start=50)
    generator = np.random.default_rng(0)
    engine = Engine(implementation, generator, honours_sleep=True)
    request = Request("a", Schedule((rule,)), 1, 0, 700)
    engine.join(request)
    while request.position < request.end:
        engine.step()
        request.advance(generator)
    engine.finish([request])
    assert len(request.expected.injections) > 10
    assert engine.n_calls < 120


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule((Rule(EntropyTrigger(above=50.0), -1.0),)),
        Schedule((Rule(MarginTrigger(0.0), -1.0),)),
        Schedule((Rule(TextTrigger("line"), -1.0),)),
        Schedule(base=(Piece(1.5),)),
    ],
)
def test_a_row_that_is_read_at_every_step_lets_nobody_sleep(implementation, schedule):
    engine = Engine(implementation, np.random.default_rng(0), honours_sleep=True)
    never = Schedule((Rule(PositionTrigger((500,)), -1.0),))
    requests = [Request("a", never, 1, 0, 20), Request("b", schedule, 2, 0, 20)]
    for request in requests:
        engine.join(request)
    for _ in range(20):
        engine.step()
        for request in requests:
            request.advance(engine.generator)
    assert engine.n_calls == 20


def test_an_open_request_keeps_its_slot_and_its_state():
    sampler = IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)
    schedule = Schedule((Rule(PeriodicTrigger(1), -1.0, max_injections=2),))
    for position in range(4):
        step_alone(sampler, sampler.open("a", schedule, 5), position, FLAT)
    trace = sampler.take(["a"])["a"]
    assert [injection.position for injection in trace.injections] == [0, 1]


@pytest.mark.parametrize("end", ["take", "close"])
def test_a_slot_starts_clean_after_its_request_has_ended(end):
    sampler = IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)
    schedule = Schedule(
        (
            Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.1), max_injections=1),
            Rule(EntropyTrigger(above=0.5), -1.0, cooldown=100),
        )
    )
    traces = []
    for time in range(3):
        slot = sampler.open("a", schedule, 5)
        for position, row in enumerate([PEAKED, FLAT, FLAT, FLAT]):
            step_alone(sampler, slot, position, row)
        if end == "close" and time == 1:
            sampler.close(["a"])
        else:
            traces.append(sampler.take(["a"])["a"])
    assert [(each.position, each.rule) for each in traces[0].injections] == [(1, 0), (2, 1)]
    assert traces[0].deferred == 1
    assert traces[1:] == traces[:-1]
