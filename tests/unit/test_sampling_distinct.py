"""Distinct draws: siblings share their noise, and the r-th takes the r-th best candidate."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import reference_sampler as reference
from negtemp_data.sampling import (
    BernoulliTrigger,
    PeriodicTrigger,
    Rule,
    Schedule,
    Siblings,
    Support,
    Vocabulary,
)
from reference_triggers import fires_at
from sampling_cases import (
    KINDS,
    SUPPORTS,
    TEMPERATURES,
    TOKENS,
    VOCABULARIES,
    WIDTH,
    logits_of_kind,
    no_text,
    step_once,
)

ALPHA = 1e-6


def distinct(temperature, support=SUPPORTS[0], vocabulary=VOCABULARIES[0]):
    rule = Rule(PeriodicTrigger(1), temperature, support, vocabulary, is_distinct=True)
    return Schedule((rule,))


row_kinds = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(TEMPERATURES),
    st.sampled_from(SUPPORTS),
    st.sampled_from(VOCABULARIES),
    st.integers(0, 40),
)


@settings(max_examples=80, derandomize=True)
@given(
    batch=st.lists(row_kinds, min_size=1, max_size=8),
    entropy=st.integers(0, 2**32),
    position=st.integers(0, 300),
)
def test_a_distinct_draw_equals_the_reference_for_any_batch(
    implementation, batch, entropy, position
):
    generator = np.random.default_rng(entropy)
    logits = np.stack([logits_of_kind(kind, generator) for kind, *_ in batch])
    schedules = [distinct(*rest) for _, *rest, _ in batch]
    seeds = generator.integers(0, 2**63, len(batch)).tolist()
    siblings = [Siblings(int(generator.integers(0, 2**63)), index) for *_, index in batch]
    after, traces = step_once(implementation, logits, schedules, seeds, position, siblings)
    for i, before in enumerate(logits):
        expected = reference.ReferenceRow(schedules[i], seeds[i], TOKENS, siblings[i])
        step = expected.step(position, before.tolist())
        if expected.is_sure:
            assert step.difference(before.tolist(), after[i].tolist()) is None
            assert reference.differences(traces[i], expected) == []


@pytest.mark.parametrize("temperature", [-1e-6, -1.0, math.inf, 1.0, 0.0])
def test_siblings_draw_different_tokens_until_there_are_no_more(implementation, temperature):
    generator = np.random.default_rng(1)
    schedule = distinct(temperature, Support(top_k=7), Vocabulary(exclude=("special",)))
    n_siblings = 2 * WIDTH
    for kind in ("flat", "ties", "masked", "huge", "tiny"):
        logits = np.stack([logits_of_kind(kind, generator)] * n_siblings)
        siblings = [Siblings(2**40 + 5, index) for index in range(n_siblings)]
        _, traces = step_once(
            implementation, logits, [schedule] * n_siblings, range(n_siblings), 3, siblings
        )
        tokens = [trace.injections[0].token_id for trace in traces]
        size = traces[0].injections[0].support_size
        assert size >= 2
        assert len(set(tokens[:size])) == size
        # Then they begin again.
        assert tokens[size:] == tokens[: n_siblings - size]


def test_the_order_of_siblings_in_the_batch_does_not_matter(implementation):
    generator = np.random.default_rng(2)
    logits = np.stack([logits_of_kind("flat", generator)] * 9)
    drawn = {}
    for name, order in [("rising", np.arange(9)), ("mixed", generator.permutation(9))]:
        siblings = [Siblings(77, int(index)) for index in order]
        _, traces = step_once(implementation, logits, [distinct(-1.0)] * 9, range(9), 0, siblings)
        drawn[name] = {
            int(index): trace.injections[0].token_id
            for index, trace in zip(order, traces, strict=True)
        }
    assert drawn["mixed"] == drawn["rising"]


def test_position_rule_and_prompt_each_change_the_order(implementation):
    logits = np.zeros((12, WIDTH), dtype=np.float32)

    def order(seed, position, schedule=None):
        siblings = [Siblings(seed, index) for index in range(12)]
        schedules = [schedule or distinct(-1.0)] * 12
        _, traces = step_once(implementation, logits, schedules, [0] * 12, position, siblings)
        return tuple(trace.injections[0].token_id for trace in traces)

    never = Rule(PeriodicTrigger(1), 1.0, start=50)
    second = Schedule((never, *distinct(-1.0).rules))
    orders = {order(5, 0), order(6, 0), order(2**32 + 5, 0), order(5, 1), order(5, 0, second)}
    assert len(orders) == 5


def test_the_first_sibling_draws_as_an_independent_row_with_their_seed_would(implementation):
    logits = np.random.default_rng(3).normal(0, 2, (30, WIDTH)).astype(np.float32)
    siblings = [Siblings(seed, 0) for seed in range(30)]
    independent = Schedule((Rule(PeriodicTrigger(1), -1.0),))
    _, shared = step_once(implementation, logits, [distinct(-1.0)] * 30, [99] * 30, 4, siblings)
    _, alone = step_once(implementation, logits, [independent] * 30, range(30), 4)
    assert shared == alone


def test_when_a_distinct_rule_fires_is_each_rows_own_affair(implementation):
    rule = Rule(BernoulliTrigger(0.4), -1.0, is_distinct=True)
    logits = np.zeros((200, WIDTH), dtype=np.float32)
    siblings = [Siblings(1, 0)] * 200
    _, traces = step_once(
        implementation, logits, [Schedule((rule,))] * 200, range(200), 0, siblings
    )
    expected = [fires_at(seed, rule, 0, 0) for seed in range(200)]
    assert [bool(trace.injections) for trace in traces] == expected
    assert 0 < sum(expected) < 200


def test_a_distinct_rule_without_siblings_is_refused(implementation):
    sampler = implementation.sampler(TOKENS, WIDTH)
    with pytest.raises(ValueError, match="siblings"):
        sampler.open("a", distinct(-1.0), 1)


# --- the joint distribution

LOGITS = [1.2, 0.7, 0.0, -0.4, 0.9]
FORBIDDEN = [-math.inf] * (WIDTH - len(LOGITS) - 2)
N_GROUPS, N_STEPS, N_DRAWN = 150, 60, 3
JOINT_TEMPERATURES = [-1.0, math.inf, 1.0]


def joint_counts(implementation, temperature):
    """How often each ordered triple of the first three siblings' tokens was drawn."""
    sampler = implementation.sampler(TOKENS, WIDTH)
    keys = [(group, index) for group in range(N_GROUPS) for index in range(N_DRAWN)]
    slots = np.array(
        [
            sampler.open(str(key), distinct(temperature), 2**50 + i, Siblings(*key))
            for i, key in enumerate(keys)
        ]
    )
    batch = np.array([[-math.inf] * 2 + LOGITS + FORBIDDEN] * len(keys), dtype=np.float32)
    for position in range(N_STEPS):
        logits = implementation.tensor(batch)
        sampler.step(logits, np.arange(len(keys)), slots, np.full(len(keys), position), no_text)
    traces = sampler.take([str(key) for key in keys])
    tokens = np.array([[each.token_id for each in traces[str(key)].injections] for key in keys])
    triples = tokens.reshape(N_GROUPS, N_DRAWN, N_STEPS).transpose(0, 2, 1).reshape(-1, N_DRAWN)
    counts = dict.fromkeys(itertools.permutations(range(2, 7), N_DRAWN), 0)
    for triple in map(tuple, triples.tolist()):
        counts[triple] += 1
    return counts


def without_replacement(temperature, triple):
    """Plackett-Luce: each draw is from what is left."""
    weights = {2 + i: math.exp(logit / temperature) for i, logit in enumerate(LOGITS)}
    probability, total = 1.0, math.fsum(weights.values())
    for token in triple:
        probability *= weights[token] / total
        total -= weights[token]
    return probability


@pytest.fixture(scope="module")
def joint(implementation):
    return {each: joint_counts(implementation, each) for each in JOINT_TEMPERATURES}


def p_value(counts, temperature, length):
    """Of the first `length` siblings' tokens."""
    found, expected = {}, {}
    n_draws = sum(counts.values())
    for triple, count in counts.items():
        head = triple[:length]
        found[head] = found.get(head, 0) + count
        expected[head] = n_draws * without_replacement(temperature, head)
    assert sum(expected.values()) == pytest.approx(n_draws)
    return stats.chisquare(list(found.values()), list(expected.values())).pvalue


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("temperature", "wrong"), [(-1.0, -1.4), (math.inf, 4.0), (1.0, 1.4)])
def test_siblings_draw_without_replacement_in_exact_proportion(joint, temperature, wrong, length):
    counts = joint[temperature]
    assert sum(counts.values()) == N_GROUPS * N_STEPS
    assert p_value(counts, temperature, length) > ALPHA
    assert p_value(counts, wrong, length) < ALPHA


def test_the_second_sibling_does_not_draw_as_the_first_does(joint):
    # With replacement it would: the test above must be able to tell.
    seconds = dict.fromkeys(range(2, 7), 0)
    for (_, second, _), count in joint[-1.0].items():
        seconds[second] += count
    n_draws = sum(seconds.values())
    independent = [n_draws * without_replacement(-1.0, (token,)) for token in seconds]
    assert stats.chisquare(list(seconds.values()), independent).pvalue < ALPHA
