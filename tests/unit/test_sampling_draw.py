"""One step: what an injected row becomes, what its record says, and which rows stay untouched."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import PeriodicTrigger, Rule, Schedule, Support, Vocabulary
from reference_supports import candidates
from sampling_cases import (
    BROKEN_KINDS,
    KINDS,
    SUPPORTS,
    TEMPERATURES,
    TOKENS,
    VOCABULARIES,
    WIDTH,
    assert_one_hot,
    assert_safe,
    is_same_bits,
    logits_of_kind,
    no_text,
    step_once,
)


def always(temperature, support=SUPPORTS[0], vocabulary=VOCABULARIES[0], guard=()):
    """A schedule that injects at every step, or not at all."""
    rule = Rule(PeriodicTrigger(1), temperature, support, vocabulary, guard, defer=0)
    return Schedule((rule,))


row_kinds = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(TEMPERATURES),
    st.sampled_from(SUPPORTS),
    st.sampled_from(VOCABULARIES),
    st.sampled_from([(), ("digits",), ("word_start", "special")]),
)


@settings(max_examples=120, derandomize=True)
@given(
    batch=st.lists(row_kinds, min_size=1, max_size=8),
    entropy=st.integers(0, 2**32),
    position=st.integers(0, 300),
)
def test_a_step_equals_the_reference_for_any_batch(implementation, batch, entropy, position):
    generator = np.random.default_rng(entropy)
    logits = np.stack([logits_of_kind(kind, generator) for kind, *_ in batch])
    schedules = [always(*rest) for _, *rest in batch]
    seeds = generator.integers(0, 2**63, len(batch)).tolist()
    after, traces = step_once(implementation, logits, schedules, seeds, position)
    for before, row, schedule, seed, trace in zip(
        logits, after, schedules, seeds, traces, strict=True
    ):
        assert_safe(before, row, TOKENS.allowed(schedule.rules[0].vocabulary, WIDTH))
        expected = reference.ReferenceRow(schedule, seed, TOKENS)
        step = expected.step(position, before.tolist())
        if expected.is_sure:
            assert step.difference(before.tolist(), row.tolist()) is None
            assert reference.differences(trace, expected) == []
        if trace.injections:
            assert_one_hot(row, trace.injections[0].token_id)
        else:
            assert is_same_bits(row, before)


def test_the_reference_is_sure_of_most_rows():
    # Guards the test above: tolerances that swallowed everything would hide any fault.
    generator = np.random.default_rng(2)
    n_rows = n_sure = n_outcomes = n_injections = 0
    for kind in [kind for kind in KINDS if kind not in BROKEN_KINDS]:
        for support in SUPPORTS:
            for temperature in TEMPERATURES:
                row = reference.ReferenceRow(always(temperature, support), n_rows, TOKENS)
                step = row.step(0, logits_of_kind(kind, generator).tolist())
                n_rows += 1
                n_sure += row.is_sure
                n_injections += step.injection is not None
                n_outcomes += len(step.injection.outcomes) if step.injection else 0
    # The others: limits on a probability where float32 can't hold ln Σ exp(z).
    assert n_sure / n_rows > 0.95
    assert n_injections / n_rows > 0.7
    assert n_outcomes / n_injections < 1.05


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_injected_row_is_one_hot_and_allowed_at_any_temperature(implementation, temperature):
    generator = np.random.default_rng(3)
    kinds = [kind for kind in KINDS if kind != "single" and kind not in BROKEN_KINDS] * 4
    logits = np.stack([logits_of_kind(kind, generator) for kind in kinds])
    logits[:, 2] = -np.inf
    # Two candidates in every row, whatever was masked.
    logits[:, 4] = logits[:, 6] = logits[:, 3:].max(axis=1)
    schedule = always(temperature, vocabulary=Vocabulary(exclude=("special",)))
    after, traces = step_once(implementation, logits, [schedule] * len(kinds), range(len(kinds)))
    for before, row, trace in zip(logits, after, traces, strict=True):
        (injection,) = trace.injections
        assert_one_hot(row, injection.token_id)
        assert np.isfinite(before[injection.token_id])
        assert 2 < injection.token_id < len(TOKENS.texts)


@pytest.mark.parametrize("kind", ["single", *sorted(BROKEN_KINDS)])
def test_a_row_without_two_candidates_is_left_alone_beside_one_that_has_them(implementation, kind):
    generator = np.random.default_rng(4)
    one_sided, full = logits_of_kind(kind, generator), logits_of_kind("equal", generator)
    arms = [
        always(temperature, support) for temperature in TEMPERATURES[::2] for support in SUPPORTS
    ]
    logits = np.stack([one_sided, full] * len(arms))
    schedules = [arm for arm in arms for _ in range(2)]
    after, traces = step_once(implementation, logits, schedules, range(len(schedules)))
    assert is_same_bits(after[::2], logits[::2])
    assert traces[::2] == [([], 0)] * len(arms)
    for arm, row, trace in zip(arms, after[1::2], traces[1::2], strict=True):
        # XTC finds no two tokens as likely as its threshold among equals.
        if arm.rules[0].support.xtc is None:
            assert_one_hot(row, trace.injections[0].token_id)


def test_rows_without_a_schedule_keep_their_bits(implementation):
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(6, WIDTH)).astype(np.float32)
    sampler = implementation.sampler(TOKENS, WIDTH)
    slot = sampler.open("a", always(-1.0), 7)
    after = implementation.tensor(logits)
    sampler.step(after, np.array([4]), np.array([slot]), np.array([0]), no_text)
    rows = after.cpu().numpy()
    assert is_same_bits(np.delete(rows, 4, axis=0), np.delete(logits, 4, axis=0))
    assert np.isneginf(rows[4]).sum() == WIDTH - 1


def test_a_step_without_scheduled_rows_changes_nothing(implementation):
    sampler = implementation.sampler(TOKENS, WIDTH)
    logits = implementation.tensor(np.zeros((2, WIDTH), dtype=np.float32))
    none = np.zeros(0, dtype=np.int64)
    assert sampler.step(logits, none, none, none, no_text) >= 0
    assert (logits == 0).all()


def distinct_rows(n_rows):
    """Rows whose logits differ by at least 0.1, so that a tiny temperature decides alone."""
    generator = np.random.default_rng(6)
    rows = [generator.permutation(WIDTH) * 0.1 for _ in range(n_rows)]
    return np.stack(rows).astype(np.float32)


# 1e-46 is less than float32 can tell from 0, which must not change the sign.
@pytest.mark.parametrize("temperature", [-1e-3, -1e-6, -1e-30, -1e-46])
def test_a_temperature_just_below_zero_draws_the_least_likely_candidate(
    implementation, temperature
):
    supports = SUPPORTS * 10
    logits = distinct_rows(len(supports))
    schedules = [always(temperature, support) for support in supports]
    _, traces = step_once(implementation, logits, schedules, range(len(supports)))
    for row, support, trace in zip(logits, supports, traces, strict=True):
        members = candidates(row.tolist(), support).exact & set(range(len(TOKENS.texts)))
        expected = [min(members, key=lambda token: row[token])] if len(members) > 1 else []
        assert [injection.token_id for injection in trace.injections] == expected


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-6, 1e-30, 1e-46])
def test_a_temperature_of_zero_or_just_above_draws_the_most_likely_candidate(
    implementation, temperature
):
    logits = distinct_rows(20)
    _, traces = step_once(implementation, logits, [always(temperature)] * 20, range(20))
    expected = logits[:, : len(TOKENS.texts)].argmax(axis=1).tolist()
    assert [trace.injections[0].token_id for trace in traces] == expected


def test_the_second_best_is_forced_by_two_candidates_just_below_zero(implementation):
    logits = distinct_rows(20)[:, : len(TOKENS.texts)].copy()
    schedule = always(-1e-6, Support(top_k=2))
    _, traces = step_once(implementation, logits, [schedule] * 20, range(20))
    expected = np.argsort(-logits, axis=1)[:, 1].tolist()
    assert [trace.injections[0].token_id for trace in traces] == expected


def test_ties_at_temperature_zero_go_to_the_lowest_id(implementation):
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    logits[0, [5, 9, 12]] = 2.0
    _, traces = step_once(implementation, logits, [always(0.0)], [1])
    assert traces[0].injections[0].token_id == 5


def test_ties_just_below_zero_are_drawn_from_the_least_likely_alone(implementation):
    logits = np.ones((200, WIDTH), dtype=np.float32)
    logits[:, [5, 9]] = 0.0
    _, traces = step_once(implementation, logits, [always(-1e-6)] * 200, range(200))
    assert {trace.injections[0].token_id for trace in traces} == {5, 9}


def test_drawing_the_most_likely_token_counts_as_an_injection(implementation):
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    logits[0, 7] = 3.0
    _, traces = step_once(implementation, logits, [always(0.0)], [1])
    (injection,) = traces[0].injections
    assert injection.token_id == injection.displaced_id == 7
    assert injection.rank == 1


def test_the_record_describes_the_row_before_the_injection(implementation):
    # Token 15 is beyond the tokenizer, so it can be displaced but not drawn.
    row = np.full(WIDTH, -np.inf)
    row[[3, 5, 7, 9, 15]] = np.log([0.1, 0.2, 0.2, 0.1, 0.4])
    schedule = always(-1e-6, Support(min_p=0.4))
    _, traces = step_once(implementation, row.astype(np.float32)[None], [schedule], [1], 11)
    (injection,) = traces[0].injections
    assert injection.position == 11
    assert injection.token_id in (5, 7)
    assert injection.displaced_id == 15
    assert injection.temperature == pytest.approx(-1e-6)
    assert injection.support_size == 2
    assert injection.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert injection.rank == 3
    assert injection.entropy == pytest.approx(
        -sum(p * math.log(p) for p in (0.1, 0.2, 0.2, 0.1, 0.4)), abs=1e-6
    )
    assert injection.rule == 0


def test_the_most_likely_token_is_displaced_with_the_lowest_id_among_ties(implementation):
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    _, traces = step_once(implementation, logits, [always(-1.0)], [1])
    assert traces[0].injections[0].displaced_id == 0


@pytest.mark.parametrize(
    ("best", "guard", "is_guarded"),
    [
        (12, ("digits",), True),
        (12, ("special", "digits"), True),
        (12, ("special",), False),
        (12, (), False),
        (4, ("digits",), False),
        # Beyond the tokenizer, so of no class.
        (15, ("special", "digits", "word_start", "english"), False),
    ],
)
def test_a_guarded_token_is_not_displaced(implementation, best, guard, is_guarded):
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    logits[0, best] = 1.0
    after, traces = step_once(implementation, logits, [always(-1.0, guard=guard)], [1])
    assert len(traces[0].injections) == (not is_guarded)
    assert is_same_bits(after, logits) == is_guarded


def test_a_guard_looks_at_the_lowest_id_among_the_most_likely(implementation):
    logits = np.zeros((2, WIDTH), dtype=np.float32)
    logits[:, 12] = 1.0
    logits[0, 11] = logits[1, 13] = 1.0
    _, traces = step_once(implementation, logits, [always(-1.0, guard=("digits",))] * 2, [1, 2])
    assert [len(trace.injections) for trace in traces] == [1, 0]


def test_position_rule_and_seed_each_change_the_draw(implementation):
    logits = np.zeros((40, WIDTH), dtype=np.float32)

    def drawn(seeds, position, schedule):
        _, traces = step_once(implementation, logits, [schedule] * 40, seeds, position)
        return [(t.injections[0].token_id, t.injections[0].rule) for t in traces]

    one_rule = always(-1.0)
    first = drawn(range(40), 0, one_rule)
    assert first != drawn(range(40), 1, one_rule)
    assert first != drawn(range(40, 80), 0, one_rule)
    # High words count as much as low ones.
    assert first != drawn([2**32 + seed for seed in range(40)], 0, one_rule)
    two_rules = Schedule((Rule(PeriodicTrigger(1), -1.0, start=1), *one_rule.rules))
    of_second = drawn(range(40), 0, two_rules)
    assert {rule for _, rule in of_second} == {1}
    assert [token for token, _ in of_second] != [token for token, _ in first]
