"""Candidate sets, seen through a base at an infinite temperature: 0 on the set, -inf elsewhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from negtemp_data.sampling import PeriodicTrigger, Piece, Rule, Schedule, Support
from reference_base import base_row
from reference_supports import ReferenceTokens, candidates
from sampling_cases import step_once

WIDTH = 12
TOKENS = ReferenceTokens(tuple(b"%d" % i for i in range(WIDTH)), frozenset(), {})

any_logit = st.floats(-100, 100, width=32) | st.integers(-3, 3).map(float)
LOGIT_KINDS = {
    "any": any_logit,
    "ties": st.integers(-2, 2).map(float),
    "masked": any_logit | st.just(-math.inf),
    "huge": st.sampled_from([-1e30, -1e29, 0.0, 1e29, 1e30, -math.inf]),
    "tiny": st.floats(-1, 1, width=32).map(lambda z: z * 1e-30),
    "offset": st.floats(-1, 1, width=32).map(lambda z: 90 + z),
    "bf16": st.floats(-40, 40, width=32).map(
        lambda z: float(torch.tensor(z, dtype=torch.bfloat16))
    ),
}


@st.composite
def rows(draw):
    """One row of logits, as float32 can hold it."""
    shape = draw(st.sampled_from([*LOGIT_KINDS, "equal", "single", "forbidden"]))
    if shape == "equal":
        row = [draw(any_logit)] * WIDTH
    elif shape == "single":
        row = [-math.inf] * WIDTH
        row[draw(st.integers(0, WIDTH - 1))] = draw(any_logit)
    elif shape == "forbidden":
        row = [-math.inf] * WIDTH
    else:
        row = draw(st.lists(LOGIT_KINDS[shape], min_size=WIDTH, max_size=WIDTH))
    return np.array(row, dtype=np.float32).tolist()


fraction = st.floats(1e-6, 1.0) | st.sampled_from([0.05, 0.25, 0.5, 1.0])
LIMITS = {
    "min_p": fraction,
    "top_p": fraction,
    "top_k": st.integers(1, WIDTH + 3),
    "top_n_sigma": st.floats(1e-3, 5.0) | st.sampled_from([1.0, 2.0]),
    "epsilon": fraction,
    "xtc": st.floats(1e-6, 0.5) | st.sampled_from([0.05, 0.1, 0.25, 0.5]),
}
one_limit = st.sampled_from(sorted(LIMITS)).flatmap(
    lambda name: LIMITS[name].map(lambda value: Support(**{name: value}))
)
any_limits = st.builds(Support, **{name: st.none() | limit for name, limit in LIMITS.items()})


def on_support(support):
    """A schedule whose rows show the support."""
    return Schedule(base=(Piece(math.inf, support=support),))


def found_supports(implementation, batch, supports):
    """The product's, all rows at once; where one is empty, its most likely token."""
    logits = np.array(batch, dtype=np.float32)
    schedules = [on_support(support) for support in supports]
    after, _ = step_once(implementation, logits, schedules, [0] * len(batch), tokens=TOKENS)
    return after.tolist()


def assert_same_supports(implementation, batch, supports):
    for logits, support, after in zip(
        batch, supports, found_supports(implementation, batch, supports), strict=True
    ):
        expected = base_row(logits, on_support(support).base[0], 0, TOKENS)
        if expected is None:
            assert after == logits
        else:
            assert expected.difference(after) is None, (support, logits)


@settings(max_examples=200, derandomize=True)
@given(row=rows(), support=one_limit)
@example(row=[1e30, -1e30, 0.0] + [-1e30] * 9, support=Support(top_n_sigma=0.5))
@example(row=[3e-30, 2e-30, 1e-30] + [0.0] * 9, support=Support(top_n_sigma=2.0))
def test_one_limit_keeps_the_same_tokens_as_the_reference(implementation, row, support):
    assert_same_supports(implementation, [row], [support])


@settings(max_examples=100, derandomize=True)
@given(batch=st.lists(st.tuples(rows(), any_limits), min_size=1, max_size=6))
def test_limits_of_different_rows_intersect_within_each_row(implementation, batch):
    assert_same_supports(implementation, *(list(column) for column in zip(*batch, strict=True)))


def test_the_reference_is_sure_of_most_supports():
    # Guards the tests above: a tolerance that swallowed everything would hide any fault.
    generator = np.random.default_rng(2)
    supports = [
        Support(0.05),
        Support(top_p=0.9),
        Support(top_n_sigma=1.0),
        Support(epsilon=0.02),
        Support(xtc=0.1),
    ]
    for support in supports:
        found = [candidates(generator.normal(0, 3, WIDTH).tolist(), support) for _ in range(100)]
        assert sum(len(each.possible) > 1 for each in found) <= 1
        assert all(each.exact in each.possible for each in found)


KNOWN = [
    pytest.param(Support(), {0, 1, 2, 3, 4}, id="no limit"),
    pytest.param(Support(min_p=0.49), {0, 1, 2}, id="min_p"),
    pytest.param(Support(min_p=1.0), {0}, id="min_p of 1 keeps the peak"),
    pytest.param(Support(top_p=0.55), {0, 1, 2}, id="top_p keeps ties of its last token"),
    pytest.param(Support(top_k=2), {0, 1, 2}, id="top_k keeps ties of its last token"),
    pytest.param(Support(top_k=9), {0, 1, 2, 3, 4}, id="top_k above the finite tokens"),
    pytest.param(Support(epsilon=0.11), {0, 1, 2}, id="epsilon"),
    pytest.param(Support(epsilon=0.99), set(), id="epsilon that nothing reaches"),
    pytest.param(Support(min_p=0.2, epsilon=0.11), {0, 1, 2}, id="the stricter limit counts"),
    pytest.param(Support(xtc=0.15), {1, 2, 3, 4}, id="xtc drops all but the least above it"),
    pytest.param(Support(xtc=0.05), {3, 4}, id="xtc that all tokens reach"),
    pytest.param(Support(xtc=0.3), set(), id="xtc that one token reaches"),
    pytest.param(Support(xtc=0.5), set(), id="xtc that no token reaches"),
    pytest.param(Support(xtc=0.15, min_p=0.3), {1, 2}, id="xtc within min_p"),
    pytest.param(Support(xtc=0.15, top_k=1), set(), id="limits that exclude each other"),
]


@pytest.mark.parametrize(("support", "kept"), KNOWN)
def test_limits_on_a_row_of_known_probabilities(implementation, support, kept):
    # 4/10, 2/10, 2/10, 1/10, 1/10 and forbidden tokens.
    row = [math.log(p) for p in (4, 2, 2, 1, 1)] + [-math.inf] * 7
    (after,) = found_supports(implementation, [row], [support])
    # A base falls back on the most likely token.
    assert {i for i, y in enumerate(after) if y == 0} == (kept or {0})
    assert all(y in (0, -math.inf) for y in after)


@pytest.mark.parametrize(("support", "kept"), KNOWN)
def test_an_injection_counts_the_same_candidates(implementation, support, kept):
    row = [math.log(p) for p in (4, 2, 2, 1, 1)] + [-math.inf] * 7
    rule = Rule(PeriodicTrigger(1), math.inf, support)
    _, (trace,) = step_once(
        implementation, np.array([row], np.float32), [Schedule((rule,))], [1], tokens=TOKENS
    )
    sizes = [injection.support_size for injection in trace.injections]
    assert sizes == ([len(kept)] if len(kept) > 1 else [])
    assert {injection.token_id for injection in trace.injections} <= kept


def test_top_n_sigma_measures_the_population_deviation_of_finite_logits(implementation):
    # Mean 1, population deviation sqrt(1.5); that of a sample would be sqrt(2).
    row = [3.0, 1.0, 0.0, 0.0] + [-math.inf] * 8
    n = 3 / math.sqrt(1.5)
    supports = [Support(top_n_sigma=n * 0.999), Support(top_n_sigma=n * 1.001)]
    below, above = found_supports(implementation, [row, row], supports)
    assert [y == 0 for y in below] == [True, True] + [False] * 10
    assert [y == 0 for y in above] == [True] * 4 + [False] * 8
