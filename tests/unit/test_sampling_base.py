"""Bases: what every step's row becomes, by pieces, at any temperature."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import (
    AnnealedTemperature,
    DynamicTemperature,
    EntropyTemperature,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    Support,
    Vocabulary,
)
from reference_base import temperature_at
from reference_supports import entropy
from sampling_cases import (
    BROKEN_KINDS,
    KINDS,
    SUPPORTS,
    TOKENS,
    VOCABULARIES,
    WIDTH,
    assert_one_hot,
    assert_safe,
    is_same_bits,
    logits_of_kind,
    step_once,
)

N_TOKENS = len(TOKENS.texts)
CONSTANTS = [
    -1e-6, -0.1, -1.0, -10.0, -math.inf, math.inf, 1e5, 10.0, 1.5, 1.0, 0.7, 1e-6, 0.0,
]  # fmt: skip
MOVING = [
    AnnealedTemperature(1.5, 0.6, 64),
    AnnealedTemperature(1.0, -1.0, 10),
    AnnealedTemperature(math.inf, 0.5, 100),
    AnnealedTemperature(2.0, -1.0, 30, "cosine"),
    AnnealedTemperature(0.0, 3.0, 7, "cosine"),
    AnnealedTemperature(10.0, 0.1, 50, "exponential"),
    AnnealedTemperature(-0.1, -2.0, 50, "exponential"),
    EntropyTemperature(1.2),
    EntropyTemperature(-0.9, 0.7, 0.3),
    EntropyTemperature(0.8, 1.3, 0.5),
    EntropyTemperature(0.8, 1.0, 2.0),
    DynamicTemperature(0.5, 1.5),
    DynamicTemperature(2.0, 0.3, 2.0),
    DynamicTemperature(0.0, 1.0),
    DynamicTemperature(-2.0, -0.5, 0.5),
]

pieces = st.builds(
    Piece,
    temperature=st.sampled_from(CONSTANTS) | st.sampled_from(MOVING),
    support=st.sampled_from(SUPPORTS),
    vocabulary=st.sampled_from(VOCABULARIES),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.4, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.3]),
)


@settings(max_examples=150, derandomize=True)
@given(
    batch=st.lists(st.tuples(st.sampled_from(KINDS), pieces), min_size=1, max_size=8),
    entropy=st.integers(0, 2**32),
    data=st.data(),
)
def test_a_base_equals_the_reference_for_any_batch(implementation, batch, entropy, data):
    generator = np.random.default_rng(entropy)
    positions = [data.draw(st.integers(0, 120)) for _ in batch]
    logits = np.stack([logits_of_kind(kind, generator) for kind, _ in batch])
    schedules = [Schedule(base=(piece,)) for _, piece in batch]
    after, traces = step_once(implementation, logits, schedules, [0] * len(batch), positions)
    assert traces == [([], 0)] * len(batch)
    for before, row, schedule, position in zip(logits, after, schedules, positions, strict=True):
        piece = schedule.base[0]
        assert_safe(before, row, TOKENS.allowed(piece.vocabulary, WIDTH))
        step = reference.ReferenceRow(schedule, 0, TOKENS).step(position, before.tolist())
        assert step.difference(before.tolist(), row.tolist()) is None, (piece, position)


def test_the_reference_is_sure_of_most_rows():
    # Guards the test above: tolerances that swallowed everything would hide any fault.
    generator = np.random.default_rng(2)
    n_rows = n_sets = 0
    for kind in [kind for kind in KINDS if kind not in BROKEN_KINDS]:
        for temperature in [*CONSTANTS, *MOVING]:
            for support in SUPPORTS[:4]:
                piece = Piece(temperature, support=support, min_p=0.02, top_k=5, top_p=0.95)
                row = reference.ReferenceRow(Schedule(base=(piece,)), 0, TOKENS)
                base = row.step(11, logits_of_kind(kind, generator).tolist()).base
                n_rows += 1
                n_sets += len(base.kept)
                if 0.01 < abs(base.colder) < math.inf:
                    assert abs(base.hotter / base.colder) < 1.01
    assert n_sets / n_rows < 1.1


def rows_after(implementation, piece_or_pieces, logits, position=0, rules=()):
    """What a base makes of rows of logits, all at these positions."""
    base = piece_or_pieces if isinstance(piece_or_pieces, tuple) else (piece_or_pieces,)
    batch = np.array(logits, dtype=np.float32)
    schedule = Schedule(rules, base)
    after, traces = step_once(
        implementation, batch, [schedule] * len(batch), range(len(batch)), position
    )
    return after, traces


def ranks(**logits):
    """A row in which only the named tokens (t4=…) are possible."""
    row = [-math.inf] * WIDTH
    for name, logit in logits.items():
        row[int(name[1:])] = logit
    return row


def probabilities(row):
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [-2.0, -1.0, 0.5, 1.0, 1e5, math.inf, -math.inf])
def test_the_row_gives_the_exact_distribution_at_any_temperature(implementation, temperature):
    row = np.random.default_rng(0).normal(0, 2, WIDTH).astype(np.float32)
    (after,), _ = rows_after(implementation, Piece(temperature), [row])
    # The engine divides by 1 and takes the softmax.
    weights = np.exp(row[:N_TOKENS].astype(np.float64) / temperature)
    assert probabilities(after)[:N_TOKENS] == pytest.approx(weights / weights.sum(), rel=1e-5)
    assert np.isneginf(after[N_TOKENS:]).all()
    assert after.max() == 0.0


def test_the_support_is_cut_before_the_temperature_is_applied(implementation):
    row = ranks(t2=0.0, t3=-1.0, t4=-2.0, t5=-9.0)
    piece = Piece(100000.0, support=Support(min_p=0.05))
    (after,), _ = rows_after(implementation, piece, [row])
    assert probabilities(after)[[2, 3, 4, 5]] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-5)


def test_truncation_comes_after_the_temperature(implementation):
    # At T = 10 the third token reaches a half of the first, as it does not at T = 1.
    row = ranks(t2=0.0, t3=-1.0, t4=-5.0, t5=-8.0)
    hot, cool = (Piece(t, min_p=0.5) for t in (10.0, 1.0))
    (after_hot,), _ = rows_after(implementation, hot, [row])
    (after_cool,), _ = rows_after(implementation, cool, [row])
    assert np.flatnonzero(np.isfinite(after_hot)).tolist() == [2, 3, 4]
    assert np.flatnonzero(np.isfinite(after_cool)).tolist() == [2]


def test_at_a_negative_temperature_truncation_keeps_what_the_model_likes_least(implementation):
    row = ranks(t2=0.0, t3=-1.0, t4=-2.0, t5=-3.0)
    for piece in (Piece(-1.0, top_k=2), Piece(-1.0, min_p=0.3), Piece(-1.0, top_p=0.8)):
        (after,), _ = rows_after(implementation, piece, [row])
        assert np.flatnonzero(np.isfinite(after)).tolist() == [4, 5]
        assert after[5] == 0.0
        assert after[4] == pytest.approx(-1.0, rel=1e-6)


def test_truncations_come_in_the_order_min_p_top_k_top_p(implementation):
    # 0.4, 0.3, 0.2, 0.1. top_p on the whole row would keep three; after top_k two have 4/7, 3/7.
    row = ranks(t2=math.log(0.4), t3=math.log(0.3), t4=math.log(0.2), t5=math.log(0.1))
    (after,), _ = rows_after(implementation, Piece(1.0, top_k=2, top_p=0.55), [row])
    assert np.flatnonzero(np.isfinite(after)).tolist() == [2]
    # After min_p three are left: 4/9, 3/9, 2/9. Of the whole row 0.75 takes three.
    (after,), _ = rows_after(implementation, Piece(1.0, min_p=0.5, top_p=0.75), [row])
    assert np.flatnonzero(np.isfinite(after)).tolist() == [2, 3]


def test_truncations_keep_ties(implementation):
    row = ranks(t2=0.0, t3=0.0, t4=0.0, t5=-1.0)
    for piece in (Piece(1.0, top_k=2), Piece(1.0, top_p=0.4), Piece(1.0, min_p=1.0)):
        (after,), _ = rows_after(implementation, piece, [row])
        assert np.flatnonzero(after == 0).tolist() == [2, 3, 4]
        assert np.isneginf(after[5])


def test_a_temperature_of_zero_leaves_the_first_of_the_most_likely(implementation):
    rows = [ranks(t2=0.0, t7=1.0, t9=1.0), ranks(t2=0.0)]
    after, _ = rows_after(implementation, Piece(0.0), rows)
    assert_one_hot(after[0], 7)
    assert_one_hot(after[1], 2)


def test_an_empty_support_falls_back_on_the_most_likely_token_of_the_vocabulary(implementation):
    row = ranks(t2=0.0, t3=0.5, t5=0.5, t8=1.0, t15=2.0)
    words = Vocabulary(include=("word_start",))
    for temperature in (-1.0, 1.0, math.inf):
        # Nothing reaches this epsilon, and nothing of the vocabulary this min_p.
        for support in (Support(epsilon=0.9), Support(min_p=0.9)):
            piece = Piece(temperature, support=support, vocabulary=words)
            (after,), _ = rows_after(implementation, piece, [row])
            assert_one_hot(after, 3)


def test_a_row_in_which_the_vocabulary_allows_nothing_stays_as_it_is(implementation):
    row = np.array([ranks(t2=0.0, t4=0.5, t15=2.0)], dtype=np.float32)
    piece = Piece(0.5, vocabulary=Vocabulary(include=("word_start",)))
    after, _ = rows_after(implementation, piece, row)
    assert is_same_bits(after, row)


def test_each_piece_serves_the_positions_before_its_end(implementation):
    base = (Piece(3.0, until=2), Piece(-1.0, until=5), Piece(0.5))
    row = ranks(t2=0.0, t3=-1.0)
    for position, expected in enumerate([3.0, 3.0, -1.0, -1.0, -1.0, 0.5, 0.5]):
        (after,), _ = rows_after(implementation, base, [row], position)
        left = after[2] - after[3]
        assert left == pytest.approx(1 / expected, rel=1e-6)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (AnnealedTemperature(2.0, 0.5, 4), {0: 2.0, 1: 1 / 0.875, 2: 0.8, 4: 0.5, 9: 0.5}),
        # β from 1 to -1 passes through 0.
        (AnnealedTemperature(1.0, -1.0, 2), {0: 1.0, 1: math.inf, 2: -1.0, 3: -1.0}),
        (AnnealedTemperature(3.0, 1.0, 4, "cosine"), {0: 3.0, 2: 2.0, 4: 1.0, 500: 1.0}),
        (AnnealedTemperature(4.0, 1.0, 4, "exponential"), {0: 4.0, 2: 2.0, 4: 1.0, 5: 1.0}),
        (AnnealedTemperature(2.0, 0.5, 1), {0: 2.0, 1: 0.5, 2: 0.5}),
        (AnnealedTemperature(1.0, 0.5, 600), {300: 1 / 1.5, 599: 600 / 1199, 10**6: 0.5}),
    ],
)
def test_an_annealed_temperature_moves_from_its_first_to_its_last(
    implementation, temperature, expected
):
    row = ranks(t2=0.0, t3=-1.0)
    for position, value in expected.items():
        (after,), _ = rows_after(implementation, Piece(temperature), [row], position)
        assert after[2] - after[3] == pytest.approx(1 / value, rel=1e-5)
        assert temperature_at(Piece(temperature), position, 0, 1) == pytest.approx(value)


def test_temperatures_from_the_entropy_follow_their_formulas(implementation):
    rows = np.random.default_rng(1).normal(0, 2, (6, WIDTH)).astype(np.float32)
    for temperature in (EntropyTemperature(1.2, 0.8, 1.5), DynamicTemperature(0.3, 1.7, 2.0)):
        after, _ = rows_after(implementation, Piece(temperature), rows)
        for before, row in zip(rows.astype(np.float64), after, strict=True):
            nats = entropy(before.tolist())
            if isinstance(temperature, EntropyTemperature):
                expected = 1.2 * 0.8 ** (1.5 / nats)
            else:
                expected = 0.3 + 1.4 * (nats / math.log(WIDTH)) ** 2
            gap = before[:N_TOKENS].max() - before[2]
            assert -row[2] == pytest.approx(gap / expected, rel=1e-5, abs=1e-6)


def test_a_row_without_a_choice_is_left_one_whatever_the_adaptive_temperature(implementation):
    peaked = [-200.0] * WIDTH
    peaked[6] = 200.0
    for temperature in MOVING:
        for row, token in [(ranks(t3=1.0), 3), (peaked, 6)]:
            piece = Piece(temperature, top_k=1, support=Support(top_k=1))
            (after,), _ = rows_after(implementation, piece, [row])
            assert_one_hot(after, token)


def test_an_injected_row_is_one_hot_and_drawn_from_the_row_as_it_came(implementation):
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, (40, WIDTH)).astype(np.float32)
    rule = Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.05))
    # This base leaves one token.
    base = Piece(0.0)
    after, traces = rows_after(implementation, base, logits, rules=(rule,))
    _, unbased = step_once(implementation, logits, [Schedule((rule,))] * 40, range(40))
    assert traces == unbased
    injected = [trace.injections[0].token_id for trace in traces if trace.injections]
    assert len(injected) > 30
    for row, trace, before in zip(after, traces, logits, strict=True):
        if trace.injections:
            assert_one_hot(row, trace.injections[0].token_id)
        else:
            assert_one_hot(row, int(before[:N_TOKENS].argmax()))


def test_a_rule_that_finds_no_candidates_leaves_the_row_to_the_base(implementation):
    logits = np.random.default_rng(4).normal(0, 1, (5, WIDTH)).astype(np.float32)
    rule = Rule(PositionTrigger((0,)), -1.0, Support(min_p=1.0))
    piece = Piece(2.0)
    after, traces = rows_after(implementation, piece, logits, rules=(rule,))
    plain, _ = rows_after(implementation, piece, logits)
    assert is_same_bits(after, plain)
    assert traces == [([], 1)] * 5


def test_rows_without_a_base_keep_their_bits_beside_rows_with_one(implementation):
    logits = np.random.default_rng(5).normal(0, 1, (4, WIDTH)).astype(np.float32)
    never = Rule(PositionTrigger((10**6,)), -1.0)
    schedules = [Schedule((never,)), Schedule(base=(Piece(-1.0),))] * 2
    after, _ = step_once(implementation, logits, schedules, range(4))
    assert is_same_bits(after[::2], logits[::2])
    assert (after[1::2] != logits[1::2]).any(axis=1).all()
