"""Requests side by side: none feels the others, and none leaves anything behind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.sampling import (
    BernoulliTrigger,
    DynamicTemperature,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    ScheduleSampler,
    ScheduleTables,
    Siblings,
    Support,
    TextTrigger,
    Vocabulary,
)
from reference_supports import ReferenceTokens
from sampling_cases import IMPLEMENTATIONS, no_text

WIDTH = 40
TOKENS = ReferenceTokens(
    (b"<s>", *(b" %d" % i if i % 2 else b"%d" % i for i in range(1, 38))), frozenset({0}), {}
)
INJECTING = [
    Schedule((Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.01)),)),
    Schedule((Rule(PeriodicTrigger(2), -0.5, Support(top_p=0.9)), Rule(PeriodicTrigger(1), 2.0))),
    Schedule((Rule(PeriodicTrigger(1), float("-inf"), Support(top_k=5)),)),
    Schedule((Rule(PeriodicTrigger(1), -3.0, Support(top_n_sigma=2.0, epsilon=1e-4)),)),
    Schedule((Rule(PeriodicTrigger(1), -1.0, vocabulary=Vocabulary(include=("word_start",))),)),
]
SCHEDULES = [
    *INJECTING,
    Schedule((Rule(EntropyTrigger(above=1.0), -1.0, guard=("special",)),)),
    Schedule((Rule(MarginTrigger(0.2), float("inf"), Support(xtc=0.1)),)),
    Schedule((Rule(TextTrigger("word"), -1.0, is_distinct=True),)),
    Schedule((Rule(BernoulliTrigger(0.5), 1.0, is_distinct=True),), (Piece(-2.0, top_k=7),)),
    Schedule(base=(Piece(1.5, until=200, support=Support(top_p=0.8)), Piece(0.0))),
    Schedule(base=(Piece(DynamicTemperature(0.5, 2.0), min_p=0.1, top_p=0.95),)),
]


def new_sampler() -> ScheduleSampler:
    return IMPLEMENTATIONS["host"].sampler(TOKENS, WIDTH)


def step(sampler, logits, slots, positions, last_tokens=no_text):
    """One step of a batch in which each row has a schedule."""
    rows = np.arange(len(slots))
    positions = np.broadcast_to(np.asarray(positions, dtype=np.int64), len(slots)).copy()
    sampler.step(logits, rows, np.array(slots), positions, last_tokens)


def tokens_of(sampler, keys):
    traces = sampler.take(keys)
    return [[injection.token_id for injection in traces[key].injections] for key in keys]


@settings(max_examples=25, derandomize=True)
@given(entropy=st.integers(0, 2**32), n_others=st.integers(0, 20))
def test_what_a_row_becomes_does_not_depend_on_the_batch_around_it(
    implementation, entropy, n_others
):
    generator = np.random.default_rng(entropy)
    n = n_others + 1
    logits = generator.normal(0, 3, (n, WIDTH)).astype(np.float32)
    logits += generator.choice([0, 0, 30, 100, -90], (n, 1)).astype(np.float32)
    logits[generator.random((n, WIDTH)) < 0.05] = -np.inf
    seeds = generator.integers(0, 2**63, n).tolist()
    schedules = [SCHEDULES[i] for i in generator.integers(0, len(SCHEDULES), n)]
    positions = generator.integers(0, 300, n)
    last = torch.from_numpy(generator.integers(0, WIDTH, n))
    keys = [str(i) for i in range(n)]

    def open_row(sampler, i):
        return sampler.open(keys[i], schedules[i], seeds[i], Siblings(seeds[i] // 2, i))

    alone = []
    sampler = implementation.sampler(TOKENS, WIDTH)
    for i in range(n):
        after = implementation.tensor(logits[i : i + 1])
        step(sampler, after, [open_row(sampler, i)], positions[i : i + 1], lambda _: last[[i]])  # noqa: B023
        alone.append((sampler.take([keys[i]])[keys[i]], after[0].tolist()))

    sampler = implementation.sampler(TOKENS, WIDTH)
    order = generator.permutation(n)
    slots = {i: open_row(sampler, i) for i in generator.permutation(n)}
    after = implementation.tensor(logits[order])
    rows = generator.permutation(n)
    sampler.step(
        after,
        rows,
        np.array([slots[i] for i in order[rows]]),
        positions[order[rows]],
        lambda indices: last[order[rows][indices]],
    )
    traces = sampler.take(keys)
    for row, i in enumerate(order):
        trace, alone_after = alone[i]
        together = traces[keys[i]]
        # Sums over a row may be split otherwise in a batch of another shape.
        assert after[row].tolist() == pytest.approx(alone_after, rel=1e-5)
        assert together.deferred == trace.deferred
        for ours, theirs in zip(together.injections, trace.injections, strict=True):
            assert ours._replace(entropy=0, logprob=0) == theirs._replace(entropy=0, logprob=0)
            assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-5)
            assert ours.entropy == pytest.approx(theirs.entropy, abs=2e-5)


def test_requests_with_one_seed_are_twins_where_their_logits_agree():
    sampler = new_sampler()
    keys = ["a", "b", "c"]
    seeds = [8, 8, 9]
    slots = [sampler.open(key, SCHEDULES[0], seed) for key, seed in zip(keys, seeds, strict=True)]
    for position in range(30):
        step(sampler, torch.zeros(3, WIDTH), slots, position)
    first, second, third = tokens_of(sampler, keys)
    assert first == second
    assert first != third


@pytest.mark.parametrize("end", ["take", "close"])
def test_ending_some_requests_leaves_the_others_running(end):
    sampler = new_sampler()
    slots = {key: sampler.open(key, SCHEDULES[0], 1) for key in "abc"}
    for position in range(4):
        step(sampler, torch.zeros(len(slots), WIDTH), list(slots.values()), position)
        if position == 1:
            if end == "take":
                assert [len(tokens) for tokens in tokens_of(sampler, ["b"])] == [2]
            else:
                sampler.close(["b"])
            del slots["b"]
    assert [len(tokens) for tokens in tokens_of(sampler, ["a", "b", "c"])] == [4, 0, 4]


def test_taking_a_request_that_is_not_open_gives_an_empty_trace():
    assert new_sampler().take(["nobody"]) == {"nobody": ([], 0)}


def test_closing_a_request_that_is_not_open_is_no_error():
    sampler = new_sampler()
    slot = sampler.open("a", SCHEDULES[0], 1)
    sampler.close(["nobody", "a"])
    sampler.close(["a"])
    assert sampler.open("b", SCHEDULES[0], 1) == slot


def test_a_schedule_without_rules_never_injects():
    sampler = new_sampler()
    slots = [sampler.open("a", Schedule(()), 1), sampler.open("b", SCHEDULES[0], 1)]
    for position in range(3):
        step(sampler, torch.zeros(2, WIDTH), slots, position)
    assert [len(tokens) for tokens in tokens_of(sampler, ["a", "b"])] == [0, 3]


def test_schedules_of_more_rules_join_while_others_run():
    sampler = new_sampler()
    slots = [sampler.open("a", SCHEDULES[0], 1)]
    step(sampler, torch.zeros(1, WIDTH), slots, 0)
    slots.append(sampler.open("b", SCHEDULES[1], 1))
    step(sampler, torch.zeros(2, WIDTH), slots, [1, 0])
    step(sampler, torch.zeros(2, WIDTH), slots, [2, 1])
    traces = sampler.take(["a", "b"])
    assert [injection.rule for injection in traces["a"].injections] == [0, 0, 0]
    assert [injection.rule for injection in traces["b"].injections] == [0, 1]


def test_what_was_done_behind_the_end_of_a_text_is_left_out():
    """Steps begin before the end is known: what they injected or put off does not count."""
    waits = Rule(PeriodicTrigger(2), -1.0, Support(min_p=0.9), defer=8)
    sampler = new_sampler()
    slots = [sampler.open(key, Schedule((waits,)), 1) for key in "abc"]
    certain = torch.zeros(3, WIDTH)
    certain[:, 5] = 20.0  # alone in its support
    for position in range(4):
        step(sampler, certain.clone(), slots, position)
    step(sampler, torch.zeros(3, WIDTH), slots, 4)
    step(sampler, certain.clone(), slots, 5)
    step(sampler, certain.clone(), slots, 6)
    traces = sampler.take(list("abc"), [7, 6, 4])
    assert [[each.position for each in traces[key].injections] for key in "abc"] == [[4], [4], []]
    # At 0, at 2, and at 6, which the second text no longer has.
    assert [traces[key].deferred for key in "ab"] == [3, 2]


def test_triggers_of_other_kinds_join_while_others_run():
    # A new literal adds states to the table that the running one is in.
    schedules = [
        Schedule((Rule(TextTrigger("literal", text), -1.0),)) for text in ("2 3", " 3 5 7", "35")
    ]
    words = [2, 3, 5, 7, 3]
    sampler, slots, begins = new_sampler(), [], []
    for position in range(len(words) + 1):
        if position < len(schedules):
            slots.append(sampler.open(str(position), schedules[position], 1))
            begins.append(position)
        here = [position - begin for begin in begins]
        # Each row reads the same words from its own beginning.
        last = torch.tensor([words[n - 1] if n else -1 for n in here])
        step(sampler, torch.zeros(len(slots), WIDTH), slots, here, lambda i: last[i])  # noqa: B023
    traces = sampler.take([str(i) for i in range(3)])
    found = [[each.position for each in traces[str(i)].injections] for i in range(3)]
    assert found == [[2], [4], []]


def cycle(sampler, name, n_requests, n_steps=3, end="take"):
    """Opens, runs and ends requests together; returns their slots."""
    keys = [f"{name}/{i}" for i in range(n_requests)]
    slots = [
        sampler.open(
            key,
            SCHEDULES[i % len(SCHEDULES)],
            i,
            Siblings(1, i),
            is_traced=end == "take",
        )
        for i, key in enumerate(keys)
    ]
    for position in range(n_steps):
        batch = torch.zeros(n_requests, WIDTH)
        step(sampler, batch, slots, position, lambda i: torch.full((len(i),), 3))
    if end == "take":
        sampler.take(keys)
    else:
        sampler.close(keys)
    return slots


@pytest.mark.parametrize("end", ["take", "close"])
def test_slots_never_exceed_the_peak_number_of_open_requests(end):
    sampler = new_sampler()
    peak = 9
    sizes = [3, peak, 1, 7, peak, 2] * 4
    used = {slot for i, size in enumerate(sizes) for slot in cycle(sampler, i, size, end=end)}
    assert len(used) == peak


def sizes_within(thing, depth=4):
    """How much each attribute of an object holds, and those of the objects in it."""
    found = {}
    for name, value in vars(thing).items():
        if isinstance(value, torch.Tensor | np.ndarray):
            found[name] = value.size if isinstance(value, np.ndarray) else value.numel()
        elif isinstance(value, dict | list | set | tuple):
            found[name] = len(value)
        elif depth and type(value).__module__.startswith("negtemp_data"):
            found[name] = sizes_within(value, depth - 1) if hasattr(value, "__dict__") else 0
    return found


@pytest.mark.parametrize("end", ["take", "close"])
def test_many_requests_one_after_the_other_leave_the_state_as_small_as_a_few(end):
    sampler = new_sampler()
    cycle(sampler, "first", 12, end=end)
    before = sizes_within(sampler)
    assert len(str(before)) > 200
    for i in range(12):
        cycle(sampler, i, 12, end=end)
    assert sizes_within(sampler) == before


def test_a_request_that_is_not_traced_leaves_no_records_behind():
    sampler = new_sampler()
    slot = sampler.open("a", SCHEDULES[0], 1, is_traced=False)
    sizes = []
    for position in range(50):
        step(sampler, torch.zeros(1, WIDTH), [slot], position)
        sizes.append(sizes_within(sampler))
    assert sizes[1:] == sizes[:-1]


def test_tracing_does_not_change_what_is_drawn():
    rows = {}
    for is_traced in (True, False):
        sampler = new_sampler()
        slot = sampler.open("a", SCHEDULES[0], 1, is_traced=is_traced)
        batches = [torch.zeros(1, WIDTH) for _ in range(20)]
        for position, batch in enumerate(batches):
            step(sampler, batch, [slot], position)
        rows[is_traced] = [batch.tolist() for batch in batches]
    assert rows[True] == rows[False]


def test_more_requests_than_the_first_allotment_of_slots_are_served():
    sampler = new_sampler()
    assert len(set(cycle(sampler, "many", 150, n_steps=1))) == 150


IMPOSSIBLE = [
    Schedule((Rule(PeriodicTrigger(1), -1.0, vocabulary=Vocabulary(("special",), ("special",))),)),
    Schedule((Rule(PeriodicTrigger(1), -1.0, guard=("verbs",)),)),
    Schedule(base=(Piece(1.0, vocabulary=Vocabulary(include=("verbs",))),)),
]


@pytest.mark.parametrize("schedule", IMPOSSIBLE)
def test_a_schedule_that_this_model_can_not_carry_out_is_refused(schedule):
    tables = ScheduleTables(TOKENS.table(), WIDTH, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"fewer than two tokens|unknown token class"):
        tables.register(schedule)
    sampler = new_sampler()
    with pytest.raises(ValueError, match=r"fewer than two tokens|unknown token class"):
        sampler.open("a", schedule, 1)
    assert cycle(sampler, "after", 1)


@pytest.mark.parametrize("schedule", IMPOSSIBLE)
def test_a_refused_request_uses_up_no_slot(schedule):
    sampler = new_sampler()
    (first,) = cycle(sampler, "first", 1)
    with pytest.raises(ValueError, match=r"fewer than two tokens|unknown token class"):
        sampler.open("bad", schedule, 1)
    assert cycle(sampler, "second", 1) == [first]


def test_a_rule_that_no_column_can_hold_leaves_the_others_as_they_were():
    sampler = new_sampler()
    with pytest.raises(ValueError, match="Overflow"):
        sampler.open("a", Schedule((Rule(PositionTrigger((2**70,)), -1.0),)), 1)
    assert cycle(sampler, "after", 1)
