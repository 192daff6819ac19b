"""Candidate sets. Every limit is a lower bound on the logit, so their intersection is one number.

A token is in the support of a row when its logit reaches the row's threshold. All limits refer to
softmax(z) at T = 1 over the whole row; being bounds on z they are inclusive and keep ties.

Shapes: K rows, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Limits(NamedTuple):
    """One support per row; the neutral value switches a limit off.

    Source: min-p 2407.01082, top-nσ 2411.07641, ε-sampling as in Hugging Face transformers.
    """

    min_p_K: Tensor
    """z ≥ z_max + ln(min_p). Neutral: 0."""
    top_p_K: Tensor
    """The smallest set of most likely tokens with this much probability. Neutral: 1."""
    top_k_K: Tensor
    """z ≥ the k-th largest logit, int64. Neutral: 0."""
    top_n_sigma_K: Tensor
    """z ≥ z_max − n·σ, σ the population deviation over finite logits. Neutral: inf."""
    epsilon_K: Tensor
    """p ≥ ε. Neutral: 0."""


def threshold(
    logits_KV: Tensor,
    log_normalizer_K: Tensor,
    limits: Limits,
    *,
    uses_top_p: bool,
    uses_top_k: bool,
    uses_top_n_sigma: bool,
) -> Tensor:
    """Smallest logit of each row's support, −inf where nothing limits it.

    The flags come from the host, so that a batch without a limit does not pay for it: top_p and
    top_k sort, top_n_sigma makes two more passes.

    Args:
        logits_KV: float32; −inf entries are forbidden tokens.
        log_normalizer_K: logsumexp of each row.
        limits: The rows' limits.
        uses_top_p: Whether any row has a top_p.
        uses_top_k: Whether any row has a top_k.
        uses_top_n_sigma: Whether any row has a top_n_sigma.

    Returns:
        float32 [K].
    """
    peak_K = logits_KV.amax(dim=1)
    bounds = [peak_K + limits.min_p_K.log(), log_normalizer_K + limits.epsilon_K.log()]
    if uses_top_p:
        bounds.append(_top_p_bound(logits_KV, log_normalizer_K, limits.top_p_K))
    if uses_top_k:
        bounds.append(_top_k_bound(logits_KV, limits.top_k_K))
    if uses_top_n_sigma:
        sigma_K = _finite_deviation(logits_KV)
        # inf·0 is nan: a row of equal logits with no limit of this kind has none.
        bound_K = peak_K - limits.top_n_sigma_K * sigma_K
        bounds.append(bound_K.masked_fill(limits.top_n_sigma_K.isinf(), -torch.inf))
    return torch.stack(bounds).amax(dim=0)


def _top_p_bound(logits_KV: Tensor, log_normalizer_K: Tensor, top_p_K: Tensor) -> Tensor:
    sorted_KV = logits_KV.sort(dim=1, descending=True).values
    mass_KV = (sorted_KV - log_normalizer_K[:, None]).exp().to(torch.float64).cumsum(dim=1)
    # Position of the token that completes the mass: those before it do not reach top_p.
    last_K = (mass_KV < top_p_K[:, None]).sum(dim=1).clamp(max=logits_KV.shape[1] - 1)
    bound_K = sorted_KV.gather(1, last_K[:, None]).squeeze(1)
    return bound_K.masked_fill(top_p_K >= 1, -torch.inf)


def _top_k_bound(logits_KV: Tensor, top_k_K: Tensor) -> Tensor:
    size = logits_KV.shape[1]
    # The largest k of the batch would need a host copy; sorting all is what a GPU can do without.
    sorted_KV = logits_KV.sort(dim=1, descending=True).values
    bound_K = sorted_KV.gather(1, (top_k_K.clamp(1, size) - 1)[:, None]).squeeze(1)
    return bound_K.masked_fill(top_k_K == 0, -torch.inf)


def _finite_deviation(logits_KV: Tensor) -> Tensor:
    finite_KV = logits_KV.isfinite()
    count_K = finite_KV.sum(dim=1)
    mean_K = logits_KV.masked_fill(~finite_KV, 0).sum(dim=1) / count_K
    spread_KV = (logits_KV - mean_K[:, None]).masked_fill(~finite_KV, 0)
    # In float32 the squares would overflow from 2e19 and vanish below 1e-23.
    norm_K: Tensor = torch.linalg.vector_norm(spread_KV, dim=1, dtype=torch.float64)
    return (norm_K / count_K.sqrt()).to(logits_KV.dtype)
