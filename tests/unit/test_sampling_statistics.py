"""What injections draw, in the long run: p ∝ exp(z/T) on the support.

Every alpha is 1e-6, and seeds are fixed, so a test that passes once passes always.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

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

ALPHA = 1e-6
TABLE = TokenTable(["<s>", "a", "b", "c", "d", "e", "f", "g", "h"], frozenset({0}))
LOGITS = [2.5, 2.0, 1.7, 1.0, 0.6, 0.0, -6.0, -math.inf, 0.4, 1.0]
"""The last is beyond the tokenizer."""
SUPPORT = Support(min_p=0.05)
N_ROWS, N_STEPS = 120, 150


def counts_at(temperatures):
    """How often each token was drawn, per temperature, from all rows and steps of one batch."""
    sampler = InjectionSampler(TABLE, len(LOGITS), torch.device("cpu"))
    keys, slots = {}, []
    for temperature in temperatures:
        rule = Rule(PeriodicTrigger(1), temperature, SUPPORT, Vocabulary(exclude=("special",)))
        keys[temperature] = [f"{temperature}/{row}" for row in range(N_ROWS)]
        # Twins: every temperature sees the same seeds.
        slots += [
            sampler.open(key, Schedule((rule,)), 2**40 + row)
            for row, key in enumerate(keys[temperature])
        ]
    rows = np.arange(len(slots))
    logits = torch.tensor(LOGITS)
    for position in range(N_STEPS):
        batch = logits.repeat(len(slots), 1)
        sampler.step(batch, rows, np.array(slots), np.full(len(slots), position))
    counts = {}
    for temperature in temperatures:
        traces = sampler.take(keys[temperature]).values()
        drawn = [injection.token_id for trace in traces for injection in trace.injections]
        counts[temperature] = np.bincount(drawn, minlength=len(LOGITS))
    return counts


def probabilities_at(temperature):
    """Exact distribution of an injection."""
    allowed = reference.allowed_tokens(TABLE, Vocabulary(exclude=("special",)), len(LOGITS))
    members = reference.candidates(LOGITS, SUPPORT).exact & allowed
    weights = np.zeros(len(LOGITS))
    for token in members:
        weights[token] = math.exp(LOGITS[token] / temperature)
    return weights / weights.sum()


def p_value(counts, probabilities):
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    return stats.chisquare(counts[possible], counts.sum() * probabilities[possible]).pvalue


@pytest.fixture(scope="module")
def counts():
    return counts_at([-1.0, -0.1, -math.inf, math.inf, 1.0])


@pytest.mark.parametrize(
    ("temperature", "wrong"),
    [(-1.0, -1.25), (-0.1, -0.125), (-math.inf, -10.0), (math.inf, 10.0), (1.0, 1.25)],
)
def test_draws_follow_the_exact_distribution_and_not_that_of_another_temperature(
    counts, temperature, wrong
):
    drawn = counts[temperature]
    assert drawn.sum() == N_ROWS * N_STEPS
    assert p_value(drawn, probabilities_at(temperature)) > ALPHA
    assert p_value(drawn, probabilities_at(wrong)) < ALPHA


def test_draws_of_neighbouring_positions_are_independent():
    sampler = InjectionSampler(TABLE, len(LOGITS), torch.device("cpu"))
    schedule = Schedule((Rule(PeriodicTrigger(1), -math.inf, SUPPORT),))
    slots = np.array([sampler.open(str(row), schedule, row) for row in range(200)])
    for position in range(100):
        batch = torch.tensor(LOGITS).repeat(200, 1)
        sampler.step(batch, np.arange(200), slots, np.full(200, position))
    traces = sampler.take([str(row) for row in range(200)]).values()
    tokens = np.array([[injection.token_id for injection in t.injections] for t in traces])
    for left, right in [
        (tokens[:, ::2], tokens[:, 1::2]),  # the next position of a row
        (tokens[::2], tokens[1::2]),  # the next seed
    ]:
        table = stats.contingency.crosstab(left.ravel(), right.ravel()).count
        assert stats.chi2_contingency(table).pvalue > ALPHA
