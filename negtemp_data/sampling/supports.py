"""Candidate sets. Every limit is a bound on the logit, so their intersection is an interval.

A token is in the support of a row when its logit reaches the row's lower bound and does not exceed
its upper one. All limits refer to softmax(z) at T = 1 over the whole row; being bounds on z they
are inclusive and keep ties.

Shapes: K rows, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from negtemp_data.sampling.stats import RowStats


class Limits(NamedTuple):
    """One support per row; the neutral value switches a limit off.

    Source: min-p 2407.01082, top-nσ 2411.07641, ε-sampling as in Hugging Face transformers, XTC as
    in llama.cpp.
    """

    min_p_K: Tensor
    """z ≥ z_max + ln(min_p). Neutral: 0."""
    top_p_K: Tensor
    """The smallest set of most likely tokens with this much probability, float64. Neutral: 1."""
    top_k_K: Tensor
    """z ≥ the k-th largest logit, int64. Neutral: 0."""
    top_n_sigma_K: Tensor
    """z ≥ z_max − n·σ, σ the population deviation over finite logits. Neutral: inf."""
    epsilon_K: Tensor
    """p ≥ ε. Neutral: 0."""
    xtc_K: Tensor
    """z ≤ the least logit with p ≥ this; no candidate where fewer than two are. Neutral: 0."""

    def select(self, chosen: Tensor | slice) -> "Limits":
        """The limits of some rows."""
        return Limits(*(column[chosen] for column in self))


class Bounds(NamedTuple):
    """Least and largest logit of each row's support, float32 [K]."""

    lower_K: Tensor
    upper_K: Tensor


class Uses(NamedTuple):
    """Which costly limits any row has, as the host knows: a batch without one does not pay."""

    top_p: bool
    top_k: int
    """Largest k; 0: none."""
    top_n_sigma: bool
    xtc: bool

    @property
    def whole_rows(self) -> bool:
        """Whether the statistics of the rows are not enough to know the supports."""
        return self.top_p or self.top_k > 0 or self.xtc


def bounds(stats: RowStats, limits: Limits, uses: Uses) -> Bounds:
    """The supports of rows, as far as their statistics alone decide them.

    Args:
        stats: Of the rows; with their deviation where `uses` has a limit of that kind.
        limits: The rows' limits.
        uses: The costly ones among them; with `whole_rows` these bounds are too wide.
    """
    lower_K = torch.maximum(
        stats.peak_K + limits.min_p_K.log(), stats.log_normalizer_K + limits.epsilon_K.log()
    )
    if uses.top_n_sigma:
        assert stats.deviation_K is not None
        # inf·0 is nan: a row of equal logits with no limit of this kind has none.
        bound_K = stats.peak_K - limits.top_n_sigma_K * stats.deviation_K
        bound_K = bound_K.masked_fill(limits.top_n_sigma_K.isinf(), -torch.inf)
        lower_K = torch.maximum(lower_K, bound_K)
    return Bounds(lower_K, torch.full_like(lower_K, torch.inf))


def top_p_bound(z_KV: Tensor, log_normalizer_K: Tensor, top_p_K: Tensor) -> Tensor:
    """Least logit of the smallest set with mass `top_p_K` (float64); −inf where it is 1."""
    sorted_KV = z_KV.sort(dim=1, descending=True).values
    mass_KV = (sorted_KV.double() - log_normalizer_K.double()[:, None]).exp().cumsum(dim=1)
    # Position of the token that completes the mass: those before it do not reach top_p.
    last_K = (mass_KV < top_p_K[:, None]).sum(dim=1).clamp(max=z_KV.shape[1] - 1)
    bound_K = sorted_KV.gather(1, last_K[:, None]).squeeze(1)
    return bound_K.masked_fill(top_p_K >= 1, -torch.inf)


def top_k_bound(z_KV: Tensor, top_k_K: Tensor, largest_k: int) -> Tensor:
    """The k-th largest logit; −inf where k is 0. `largest_k` is the largest of `top_k_K`."""
    size = min(largest_k, z_KV.shape[1])
    sorted_KV = z_KV.topk(size, dim=1).values
    bound_K = sorted_KV.gather(1, (top_k_K.clamp(1, size) - 1)[:, None]).squeeze(1)
    return bound_K.masked_fill(top_k_K == 0, -torch.inf)
