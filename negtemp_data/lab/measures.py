"""How well scores tell good from bad, with intervals.

The unit of resampling is the prompt, since the samples of one prompt are not independent. Shapes: P
prompts, B resamples, K quantities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_RESAMPLES = 1000
_BINS = 10


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95% interval (bootstrap over prompts)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Threshold:
    """A score to accept at."""

    accept_at: float
    precision: float
    """Share of good samples among the accepted ones, on prompts that it was not chosen on."""
    recall: float
    """Share of the good samples that are accepted, there."""


def auc(good: Scores, bad: Scores) -> float:
    """Probability that a good sample's score exceeds a bad one's, ties counted half."""
    order = np.sort(bad)
    below = np.searchsorted(order, good, side="left")
    not_above = np.searchsorted(order, good, side="right")
    return float((below + not_above).mean() / (2 * len(bad)))


def auc_interval(good: Scores, bad: Scores, *, is_paired: bool) -> Interval:
    """AUC of good against bad samples; `is_paired`: number i of both has the same prompt."""
    for_good = _resampled(len(good), 0)
    for_bad = for_good if is_paired else _resampled(len(bad), 1)
    pairs = zip(for_good, for_bad, strict=True)
    values = [auc(good[these], bad[those]) for these, those in pairs]
    return Interval(auc(good, bad), *np.quantile(values, [0.025, 0.975]).tolist())


def paired_interval(good_P: Scores, bad_P: Scores) -> Interval:
    """Share of prompts whose good sample has the higher score, ties counted half."""
    wins_P = (good_P > bad_P) + 0.5 * (good_P == bad_P)
    values = [wins_P[rows].mean() for rows in _resampled(len(wins_P), 0)]
    return Interval(float(wins_P.mean()), *np.quantile(values, [0.025, 0.975]).tolist())


def _resampled(n_prompts: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(n_prompts, size=(_RESAMPLES, n_prompts))


class PromptMeans:
    """Means of K quantities over prompts that pass by one at a time, and their bootstrap.

    Each prompt counts Poisson(1) times in each resample, so only sums are kept, however many
    prompts there are. Source: Chamandy et al., Estimating Uncertainty for Massive Data Streams
    (2012).
    """

    def __init__(self, n_means: int) -> None:
        """No prompt yet."""
        self._generator = np.random.default_rng(0)
        # The first row is no resample: there each prompt counts once.
        self._sums_BK = np.zeros((1 + _RESAMPLES, n_means))
        self._counts_BK = np.zeros((1 + _RESAMPLES, n_means))

    def add(self, sums_K: Scores, counts_K: NDArray[np.int64]) -> None:
        """Takes one prompt's sum of each quantity, and how many values are in it."""
        weights_B = np.concatenate([[1], self._generator.poisson(size=_RESAMPLES)])
        self._sums_BK += weights_B[:, None] * sums_K
        self._counts_BK += weights_B[:, None] * counts_K

    def means_BK(self) -> Scores:
        """The means, in the first row those of all prompts; nan where there is no value."""
        means_BK = np.full_like(self._sums_BK, np.nan)
        np.divide(self._sums_BK, self._counts_BK, out=means_BK, where=self._counts_BK > 0)
        return means_BK


def resampled_interval(values_B: Scores) -> Interval:
    """From the estimate and, behind it, its resamples; any of them may be inf, or nan for none."""
    low, high = np.nanquantile(values_B[1:], [0.025, 0.975], method="inverted_cdf").tolist()
    return Interval(float(values_B[0]), low, high)


def calibration_error(good: Scores, bad: Scores) -> float:
    """Expected calibration error of the score as a probability that a sample is good.

    Scores become probabilities by a logistic curve (Platt), fitted on every other prompt and
    measured on the rest, with good and bad samples weighted alike; ten bins of equal size.
    Source: ECE, 1706.04599.
    """
    slope, offset = _fit_logistic(good[::2], bad[::2])
    scores = np.concatenate([good[1::2], bad[1::2]])
    is_good = np.concatenate([np.ones(len(good[1::2])), np.zeros(len(bad[1::2]))])
    weight = np.concatenate(
        [np.full(len(good[1::2]), 1 / len(good[1::2])), np.full(len(bad[1::2]), 1 / len(bad[1::2]))]
    )
    p = 1 / (1 + np.exp(-(slope * scores + offset)))
    error = 0.0
    for rows in np.array_split(np.argsort(p), min(_BINS, len(p))):
        share = weight[rows].sum()
        gap = np.average(is_good[rows] - p[rows], weights=weight[rows])
        error += share * abs(float(gap))
    return error / float(weight.sum())


def _fit_logistic(good: Scores, bad: Scores) -> tuple[float, float]:
    from scipy.optimize import minimize  # noqa: PLC0415

    scores = np.concatenate([good, bad])
    centre, spread = float(scores.mean()), float(scores.std()) or 1.0
    signs = np.concatenate([np.ones(len(good)), -np.ones(len(bad))])
    weights = np.concatenate([np.full(len(good), 1 / len(good)), np.full(len(bad), 1 / len(bad))])
    x = (scores - centre) / spread

    def loss(parameters: Scores) -> float:
        margin = signs * (parameters[0] * x + parameters[1])
        return float((weights * np.logaddexp(0, -margin)).sum() + 1e-4 * parameters[0] ** 2)

    slope, offset = minimize(loss, np.zeros(2)).x.tolist()
    return slope / spread, offset - slope * centre / spread


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's ρ; nan where one of them does not vary."""
    from scipy.stats import spearmanr  # noqa: PLC0415

    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(spearmanr(left, right).statistic)


LEAST_RECALL = 0.1
"""Share of the good samples that a suggested threshold has to accept."""


def suggest_threshold(good: Scores, bad: Scores, precision: float) -> Threshold | None:
    """The lowest score from which on accepted samples have the wanted precision.

    Good and bad samples weigh alike, so that the precision is that of a half-good pool. Chosen on
    every other prompt, measured on the rest; None where no score reaches it and still accepts
    `LEAST_RECALL` of the good: the best few say nothing of the next prompts.

    Args:
        good: Scores of the good samples.
        bad: Scores of the bad ones; any number.
        precision: Wanted share of good samples among the accepted.
    """
    candidates = np.unique(good[::2])
    recalls = (good[::2] >= candidates[:, None]).mean(axis=1)
    false_rates = (bad[::2] >= candidates[:, None]).mean(axis=1)
    enough = (recalls / (recalls + false_rates) >= precision) & (recalls >= LEAST_RECALL)
    if not enough.any():
        return None
    accept_at = float(candidates[enough][0])
    recall = float((good[1::2] >= accept_at).mean())
    false_rate = float((bad[1::2] >= accept_at).mean())
    share = recall / (recall + false_rate) if recall + false_rate else float("nan")
    return Threshold(accept_at, share, recall)
