"""What rows draw, in the long run: p ∝ exp(z/T) on the support.

Every alpha is 1e-6, and seeds are fixed, so a test that passes once passes always.
"""

import math

import numpy as np
import pytest
from scipy import stats

from negtemp_data.sampling import PeriodicTrigger, Piece, Rule, Schedule, Support, Vocabulary
from reference_supports import ReferenceTokens, candidates
from sampling_cases import no_text, step_once

ALPHA = 1e-6
TOKENS = ReferenceTokens(tuple(b"%d" % i for i in range(9)), frozenset({0}), {})
LOGITS = [2.5, 2.0, 1.7, 1.0, 0.6, 0.0, -6.0, -math.inf, 0.4, 1.0]
"""The last is beyond the tokenizer."""
ARMS = {
    "negative": (-1.0, Support(min_p=0.05)),
    "cold negative": (-0.1, Support(min_p=0.05)),
    "uniform": (math.inf, Support(min_p=0.05)),
    "uniform from below": (-math.inf, Support(top_n_sigma=1.5)),
    "hot": (2.0, Support(top_p=0.9)),
    "model": (1.0, Support()),
    "xtc": (1.0, Support(xtc=0.11)),
}
WRONG = {
    "negative": -1.5,
    "cold negative": -0.15,
    "uniform": 4.0,
    "uniform from below": -4.0,
    "hot": 4.0,
    "model": 1.5,
    "xtc": 2.0,
}
NOT_SPECIAL = Vocabulary(exclude=("special",))
N_ROWS, N_STEPS = 120, 60


def drawn_by(implementation, rules, n_rows, n_steps):
    """Tokens that each rule draws: [rule, row, step]; every rule sees the same seeds."""
    sampler = implementation.sampler(TOKENS, len(LOGITS))
    keys = [f"{i}/{row}" for i in range(len(rules)) for row in range(n_rows)]
    slots = np.array(
        [
            sampler.open(key, Schedule((rules[i // n_rows],)), 2**40 + i % n_rows)
            for i, key in enumerate(keys)
        ]
    )
    batch = np.array([LOGITS] * len(slots), dtype=np.float32)
    for position in range(n_steps):
        positions = np.full(len(slots), position)
        logits = implementation.tensor(batch)
        sampler.step(logits, np.arange(len(slots)), slots, positions, no_text)
    traces = sampler.take(keys)
    tokens = [[injection.token_id for injection in traces[key].injections] for key in keys]
    return np.array(tokens).reshape(len(rules), n_rows, n_steps)


def probabilities(temperature, support):
    """Exact distribution of an injection."""
    allowed = TOKENS.allowed(NOT_SPECIAL, len(LOGITS))
    weights = np.zeros(len(LOGITS))
    for token in candidates(LOGITS, support).exact & allowed:
        weights[token] = math.exp(LOGITS[token] / temperature)
    return weights / weights.sum()


def p_value(counts, expected):
    possible = expected > 0
    assert counts[~possible].sum() == 0
    return stats.chisquare(counts[possible], counts.sum() * expected[possible]).pvalue


@pytest.fixture(scope="module")
def counts(implementation):
    rules = [
        Rule(PeriodicTrigger(1), temperature, support, NOT_SPECIAL)
        for temperature, support in ARMS.values()
    ]
    drawn = drawn_by(implementation, rules, N_ROWS, N_STEPS)
    return {
        name: np.bincount(tokens.ravel(), minlength=len(LOGITS))
        for name, tokens in zip(ARMS, drawn, strict=True)
    }


@pytest.mark.parametrize("arm", ARMS)
def test_draws_follow_the_exact_distribution_and_not_that_of_another_temperature(counts, arm):
    temperature, support = ARMS[arm]
    assert counts[arm].sum() == N_ROWS * N_STEPS
    assert p_value(counts[arm], probabilities(temperature, support)) > ALPHA
    assert p_value(counts[arm], probabilities(WRONG[arm], support)) < ALPHA


def test_draws_of_neighbouring_positions_and_seeds_are_independent(implementation):
    rule = Rule(PeriodicTrigger(1), -math.inf, Support(min_p=0.05))
    (tokens,) = drawn_by(implementation, [rule], 200, 60)
    for left, right in [
        (tokens[:, ::2], tokens[:, 1::2]),  # the next position of a row
        (tokens[::2], tokens[1::2]),  # the next seed
    ]:
        table = stats.contingency.crosstab(left.ravel(), right.ravel()).count
        assert stats.chi2_contingency(table).pvalue > ALPHA


@pytest.mark.parametrize("arm", ARMS)
def test_a_base_leaves_the_same_distribution_to_the_engine(implementation, arm):
    temperature, support = ARMS[arm]
    schedule = Schedule(base=(Piece(temperature, support=support, vocabulary=NOT_SPECIAL),))
    logits = np.array([LOGITS], dtype=np.float32)
    (after,), _ = step_once(implementation, logits, [schedule], [1], tokens=TOKENS)
    # The engine samples from its softmax.
    weights = np.exp(after.astype(np.float64))
    expected = probabilities(temperature, support)
    assert weights / weights.sum() == pytest.approx(expected, rel=1e-5)
