"""One step: what an injected row becomes, what its record says, and which rows stay untouched."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import (
    InjectionSampler,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    TokenTable,
    Vocabulary,
)

WIDTH = 16
TABLE = TokenTable(
    ["<s>", "</s>", "a", "Ġa", "b", "Ġb", "c", "Ġc", "d", "Ġd", "e", "Ġe", "f", "Ġ"],
    frozenset({0, 1}),
)
"""Two tokens fewer than the logits are wide."""

TEMPERATURES = [
    -1e-6, -1e-3, -0.1, -1.0, -10.0, -math.inf, math.inf, 10.0, 1.0, 0.1, 1e-6, 0.0,
]  # fmt: skip
SUPPORTS = [
    Support(),
    Support(min_p=0.03),
    Support(top_p=0.93),
    Support(top_k=4),
    Support(top_n_sigma=1.3),
    Support(epsilon=0.013),
    Support(top_p=0.97, top_k=6, min_p=1e-3),
]
VOCABULARIES = [
    Vocabulary(),
    Vocabulary(exclude=("special",)),
    Vocabulary(include=("word_start",)),
]


def logits_of_kind(kind, generator):
    """One float32 row."""
    normal = generator.normal(size=WIDTH)
    row = {
        "flat": normal,
        "peaked": normal * 8,
        "ties": generator.integers(-2, 3, WIDTH),
        "masked": np.where(generator.random(WIDTH) < 0.5, -np.inf, normal * 3),
        "equal": np.full(WIDTH, normal[0]),
        "single": np.where(np.arange(WIDTH) == 3, normal, -np.inf),
        "huge": generator.choice([-1e30, 0.0, 1e29, 1e30], WIDTH),
        "tiny": normal * 1e-30,
        "bf16": torch.from_numpy(normal * 5).to(torch.bfloat16).to(torch.float64).numpy(),
        "nan": np.where(np.arange(WIDTH) % 5 == 2, np.nan, normal),
        "all nan": np.full(WIDTH, np.nan),
        "forbidden": np.full(WIDTH, -np.inf),
    }[kind]
    return row.astype(np.float32)


KINDS = [
    "flat", "peaked", "ties", "masked", "equal", "single", "huge", "tiny", "bf16", "nan",
    "all nan", "forbidden",
]  # fmt: skip


def always(temperature, support=SUPPORTS[0], vocabulary=VOCABULARIES[0]):
    """A rule that injects at every step, or not at all."""
    return Rule(PeriodicTrigger(1), temperature, support, vocabulary, defer=0)


def step_once(logits, rules, seeds, position=0):
    """Runs one step with one rule per row; the logits afterwards and the rows' traces."""
    sampler = InjectionSampler(TABLE, logits.shape[1], torch.device("cpu"))
    keys = [str(row) for row in range(len(rules))]
    slots = [
        sampler.open(key, Schedule((rule,)), seed)
        for key, rule, seed in zip(keys, rules, seeds, strict=True)
    ]
    after = torch.from_numpy(logits.copy())
    sampler.step(after, np.arange(len(rules)), np.array(slots), np.full(len(rules), position))
    traces = sampler.take(keys)
    return after.numpy(), [traces[key] for key in keys]


def assert_one_hot(row, token):
    assert row[token] == 0.0
    assert (np.delete(row, token) == -np.inf).all()


def same_bits(left, right):
    return (left.view(np.int32) == right.view(np.int32)).all()


row_kinds = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(TEMPERATURES),
    st.sampled_from(SUPPORTS),
    st.sampled_from(VOCABULARIES),
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    batch=st.lists(row_kinds, min_size=1, max_size=8),
    entropy=st.integers(0, 2**32),
    position=st.integers(0, 300),
)
def test_a_step_equals_the_reference_for_any_batch(batch, entropy, position):
    generator = np.random.default_rng(entropy)
    logits = np.stack([logits_of_kind(kind, generator) for kind, *_ in batch])
    rules = [always(*rest) for _, *rest in batch]
    seeds = generator.integers(0, 2**63, len(batch)).tolist()
    after, traces = step_once(logits, rules, seeds, position)
    for before, row, rule, seed, trace in zip(logits, after, rules, seeds, traces, strict=True):
        if is_too_close_to_call(before, rule):
            continue
        expected = reference.ReferenceRow(Schedule((rule,)), seed, TABLE)
        expected.step(position, before.tolist())
        if np.abs(before[np.isfinite(before)]).max(initial=0) < 1e6:
            assert reference.differences(trace, expected) == []
        else:
            # float32 can't hold log-probabilities beside logits of 1e30.
            assert reference.differences(trace, expected, tolerance=4.0) == []
        if trace.injections:
            token = trace.injections[0].token_id
            assert_one_hot(row, token)
            assert np.isfinite(before[token])
            assert token in reference.allowed_tokens(TABLE, rule.vocabulary, WIDTH)
        else:
            assert same_bits(row, before)


def is_too_close_to_call(logits, rule):
    """Whether float32 may find other candidates (`reference_sampler`'s tolerances)."""
    allowed = reference.allowed_tokens(TABLE, rule.vocabulary, WIDTH)
    return bool(reference.candidates(logits.tolist(), rule.support).unsure & allowed)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_injected_row_is_one_hot_and_allowed_at_any_temperature(temperature):
    generator = np.random.default_rng(3)
    kinds = [kind for kind in KINDS if kind not in ("single", "nan", "all nan", "forbidden")] * 8
    logits = np.stack([logits_of_kind(kind, generator) for kind in kinds])
    logits[:, 2] = -np.inf
    # Two candidates in every row, whatever was masked.
    logits[:, 4] = logits[:, 6] = logits[:, 3:].max(axis=1)
    rule = always(temperature, vocabulary=Vocabulary(exclude=("special",)))
    after, traces = step_once(logits, [rule] * len(kinds), range(len(kinds)))
    for before, row, trace in zip(logits, after, traces, strict=True):
        (injection,) = trace.injections
        assert_one_hot(row, injection.token_id)
        assert np.isfinite(before[injection.token_id])
        assert 2 < injection.token_id < len(TABLE.tokens)


@pytest.mark.parametrize("kind", ["nan", "all nan", "forbidden", "single"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("support", SUPPORTS)
def test_a_row_without_two_candidates_is_left_alone_beside_one_that_has_them(
    kind, temperature, support
):
    generator = np.random.default_rng(4)
    logits = np.stack([logits_of_kind(kind, generator), logits_of_kind("flat", generator)])
    after, traces = step_once(logits, [always(temperature, support)] * 2, [1, 2])
    assert same_bits(after[0], logits[0])
    assert traces[0] == ([], 0)
    assert_one_hot(after[1], traces[1].injections[0].token_id)


def test_rows_without_a_schedule_keep_their_bits():
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(6, WIDTH)).astype(np.float32)
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    slot = sampler.open("a", Schedule((always(-1.0),)), 7)
    after = torch.from_numpy(logits.copy())
    sampler.step(after, np.array([4]), np.array([slot]), np.array([0]))
    assert same_bits(np.delete(after.numpy(), 4, axis=0), np.delete(logits, 4, axis=0))
    assert np.isneginf(after[4].numpy()).sum() == WIDTH - 1


def test_a_step_without_scheduled_rows_changes_nothing():
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    logits = torch.zeros(2, WIDTH)
    none = np.zeros(0, dtype=np.int64)
    assert sampler.step(logits, none, none, none) >= 0
    assert (logits == 0).all()


def distinct_rows(n_rows):
    """Rows whose logits differ by at least 0.1, so that a tiny temperature decides alone."""
    generator = np.random.default_rng(6)
    rows = [generator.permutation(WIDTH) * 0.1 for _ in range(n_rows)]
    return np.stack(rows).astype(np.float32)


# 1e-46 is less than float32 can tell from 0, which must not change the sign.
@pytest.mark.parametrize("temperature", [-1e-3, -1e-6, -1e-30, -1e-46])
@pytest.mark.parametrize("support", SUPPORTS)
def test_a_temperature_just_below_zero_draws_the_least_likely_candidate(temperature, support):
    logits = distinct_rows(20)
    _, traces = step_once(logits, [always(temperature, support)] * 20, range(20))
    for row, trace in zip(logits, traces, strict=True):
        members = reference.candidates(row.tolist(), support).exact & set(range(len(TABLE.tokens)))
        expected = min(members, key=lambda token: row[token])
        assert [injection.token_id for injection in trace.injections] == [expected]


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-6, 1e-30, 1e-46])
def test_a_temperature_of_zero_or_just_above_draws_the_most_likely_candidate(temperature):
    logits = distinct_rows(20)
    _, traces = step_once(logits, [always(temperature)] * 20, range(20))
    expected = logits[:, : len(TABLE.tokens)].argmax(axis=1).tolist()
    assert [trace.injections[0].token_id for trace in traces] == expected


def test_ties_at_temperature_zero_go_to_the_lowest_id():
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    logits[0, [5, 9, 12]] = 2.0
    _, traces = step_once(logits, [always(0.0)], [1])
    assert traces[0].injections[0].token_id == 5


def test_ties_just_below_zero_are_drawn_from_the_least_likely_alone():
    logits = np.ones((200, WIDTH), dtype=np.float32)
    logits[:, [5, 9]] = 0.0
    _, traces = step_once(logits, [always(-1e-6)] * 200, range(200))
    assert {trace.injections[0].token_id for trace in traces} == {5, 9}


def test_drawing_the_most_likely_token_counts_as_an_injection():
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    logits[0, 7] = 3.0
    _, traces = step_once(logits, [always(0.0)], [1])
    (injection,) = traces[0].injections
    assert injection.token_id == injection.displaced_id == 7
    assert injection.rank == 1


def test_the_record_describes_the_row_before_the_injection():
    # Token 15 is beyond the tokenizer, so it can be displaced but not drawn.
    row = np.full(WIDTH, -np.inf)
    row[[3, 5, 7, 9, 15]] = np.log([0.1, 0.2, 0.2, 0.1, 0.4])
    rule = always(-1e-6, Support(min_p=0.4))
    _, traces = step_once(row.astype(np.float32)[None], [rule], [1], position=11)
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


def test_the_most_likely_token_is_displaced_with_the_lowest_id_among_ties():
    logits = np.zeros((1, WIDTH), dtype=np.float32)
    _, traces = step_once(logits, [always(-1.0)], [1])
    assert traces[0].injections[0].displaced_id == 0


def test_position_rule_and_seed_each_change_the_draw():
    logits = np.zeros((40, WIDTH), dtype=np.float32)
    rules = [always(-1.0)] * 40

    def tokens(seeds, position):
        _, traces = step_once(logits, rules, seeds, position)
        return [trace.injections[0].token_id for trace in traces]

    assert tokens(range(40), 0) != tokens(range(40), 1)
    assert tokens(range(40), 0) != tokens(range(40, 80), 0)
    # High words count as much as low ones.
    assert tokens(range(40), 0) != tokens([2**32 + seed for seed in range(40)], 0)
    two_rules = Schedule((Rule(PeriodicTrigger(1), -1.0, start=1), always(-1.0)))
    sampler = InjectionSampler(TABLE, WIDTH, torch.device("cpu"))
    slots = np.array([sampler.open(str(seed), two_rules, seed) for seed in range(40)])
    sampler.step(torch.zeros(40, WIDTH), np.arange(40), slots, np.zeros(40, dtype=np.int64))
    traces = sampler.take([str(seed) for seed in range(40)]).values()
    assert [trace.injections[0].rule for trace in traces] == [1] * 40
    assert tokens(range(40), 0) != [trace.injections[0].token_id for trace in traces]
