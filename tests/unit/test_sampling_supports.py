"""Candidate sets: the threshold on the logit against sets of tokens found one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import Limits, Support, threshold

WIDTH = 12

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
}
one_limit = st.sampled_from(sorted(LIMITS)).flatmap(
    lambda name: LIMITS[name].map(lambda value: Support(**{name: value}))
)
any_limits = st.builds(Support, **{name: st.none() | limit for name, limit in LIMITS.items()})


def product_support(batch, supports):
    """Sets of tokens at or above the product's threshold, all rows at once."""
    logits = torch.tensor(batch, dtype=torch.float32)
    limits = Limits(
        min_p_K=torch.tensor([s.min_p or 0.0 for s in supports]),
        top_p_K=torch.tensor(
            [1.0 if s.top_p is None else s.top_p for s in supports], dtype=torch.float64
        ),
        top_k_K=torch.tensor([s.top_k or 0 for s in supports]),
        top_n_sigma_K=torch.tensor(
            [math.inf if s.top_n_sigma is None else s.top_n_sigma for s in supports]
        ),
        epsilon_K=torch.tensor([s.epsilon or 0.0 for s in supports]),
    )
    bound = threshold(
        logits,
        logits.logsumexp(dim=1),
        limits,
        uses_top_p=any(s.top_p is not None for s in supports),
        uses_top_k=any(s.top_k is not None for s in supports),
        uses_top_n_sigma=any(s.top_n_sigma is not None for s in supports),
    )
    inside = (logits >= bound[:, None]) & logits.isfinite()
    return [set(row.nonzero().flatten().tolist()) for row in inside]


def assert_same_supports(batch, supports):
    for logits, support, found in zip(
        batch, supports, product_support(batch, supports), strict=True
    ):
        expected = reference.candidates(logits, support)
        # `unsure`: within 1e-5 of a limit in relative probability, or 4 float32 steps of the
        # largest logit.
        assert expected.sure <= found <= expected.sure | expected.unsure, (support, logits)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(row=rows(), support=one_limit)
@example(row=[1e30, -1e30, 0.0] + [-1e30] * 9, support=Support(top_n_sigma=0.5))
@example(row=[3e-30, 2e-30, 1e-30] + [0.0] * 9, support=Support(top_n_sigma=2.0))
def test_one_limit_keeps_the_same_tokens_as_the_reference(row, support):
    assert_same_supports([row], [support])


@settings(deadline=None, max_examples=200, derandomize=True)
@given(batch=st.lists(st.tuples(rows(), any_limits), min_size=1, max_size=6))
def test_limits_of_different_rows_intersect_within_each_row(batch):
    assert_same_supports(*(list(column) for column in zip(*batch, strict=True)))


def test_the_reference_is_sure_of_most_tokens():
    # Guards the tests above: a tolerance that swallowed everything would hide any fault.
    generator = np.random.default_rng(2)
    supports = [Support(0.05), Support(top_p=0.9), Support(top_n_sigma=1.0), Support(epsilon=0.02)]
    for support in supports:
        found = [
            reference.candidates(generator.normal(0, 3, WIDTH).tolist(), support)
            for _ in range(100)
        ]
        assert sum(len(each.unsure) for each in found) <= 1
        assert all(each.sure <= each.exact for each in found)


@pytest.mark.parametrize(
    ("support", "kept"),
    [
        pytest.param(Support(), {0, 1, 2, 3, 4}, id="no limit"),
        pytest.param(Support(min_p=0.49), {0, 1, 2}, id="min_p"),
        pytest.param(Support(min_p=1.0), {0}, id="min_p of 1 keeps the peak"),
        pytest.param(Support(top_p=0.55), {0, 1, 2}, id="top_p keeps ties of its last token"),
        pytest.param(Support(top_k=2), {0, 1, 2}, id="top_k keeps ties of its last token"),
        pytest.param(Support(top_k=9), {0, 1, 2, 3, 4}, id="top_k above the finite tokens"),
        pytest.param(Support(epsilon=0.11), {0, 1, 2}, id="epsilon"),
        pytest.param(Support(epsilon=0.99), set(), id="epsilon that nothing reaches"),
        pytest.param(Support(min_p=0.2, epsilon=0.11), {0, 1, 2}, id="the stricter limit counts"),
    ],
)
def test_limits_on_a_row_of_known_probabilities(support, kept):
    # 4/10, 2/10, 2/10, 1/10, 1/10 and a forbidden token.
    row = [math.log(p) for p in (4, 2, 2, 1, 1)] + [-math.inf]
    assert product_support([row], [support]) == [kept]


def test_top_n_sigma_measures_the_population_deviation_of_finite_logits():
    # Mean 1, population deviation sqrt(1.5); that of a sample would be sqrt(2).
    row = [3.0, 1.0, 0.0, 0.0, -math.inf]
    n = 3 / math.sqrt(1.5)
    below, above = Support(top_n_sigma=n * 0.999), Support(top_n_sigma=n * 1.001)
    assert product_support([row, [*row]], [below, above]) == [{0, 1}, {0, 1, 2, 3}]
