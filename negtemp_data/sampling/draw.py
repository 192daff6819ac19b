"""One injection for each of K rows: candidates, draw, and what it displaced.

Semantics: S = support ∩ vocabulary; a = argmax over S of ((z − r)/T + g), r = min z on S for T < 0
and max for T > 0, g standard Gumbel noise; ties go to the lowest id. Subtracting r keeps the
exponents ≤ 0 whatever the sign of T, so nothing overflows; T = ±inf leaves the noise alone, which
is the uniform draw.

Shapes: K rows, V vocabulary, C candidates of all rows together.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from negtemp_data.sampling.philox import Stream, gumbel, philox
from negtemp_data.sampling.supports import Limits, threshold


class DrawRequest(NamedTuple):
    """What to draw from each row."""

    logits_KV: Tensor
    """float32; −inf entries are forbidden tokens and never drawn."""
    allowed_KV: Tensor
    """bool, the vocabulary."""
    limits: Limits
    """The support."""
    temperature_K: Tensor
    """float32, any sign, ±inf; 0 is the most likely candidate."""
    seed_K: Tensor
    """int64 row seeds."""
    position_K: Tensor
    """int64."""
    rule_K: Tensor
    """int64 index of the rule in its schedule."""


class Draw(NamedTuple):
    """The outcome; of rows with fewer than two candidates only `support_size_K` means anything."""

    token_id_K: Tensor
    displaced_id_K: Tensor
    support_size_K: Tensor
    logprob_K: Tensor
    rank_K: Tensor
    entropy_K: Tensor


def draw(
    request: DrawRequest, *, uses_top_p: bool, uses_top_k: bool, uses_top_n_sigma: bool
) -> Draw:
    """Draws one token per row; the flags are those of `supports.threshold`."""
    z_KV = request.logits_KV
    log_normalizer_K = z_KV.logsumexp(dim=1)
    threshold_K = threshold(
        z_KV,
        log_normalizer_K,
        request.limits,
        uses_top_p=uses_top_p,
        uses_top_k=uses_top_k,
        uses_top_n_sigma=uses_top_n_sigma,
    )
    support_KV = (z_KV >= threshold_K[:, None]) & request.allowed_KV & z_KV.isfinite()
    token_id_K = _gumbel_max(request, support_KV)
    token_logit_K = z_KV.gather(1, token_id_K[:, None])
    logprob_KV = z_KV - log_normalizer_K[:, None]
    return Draw(
        token_id_K=token_id_K,
        displaced_id_K=_first_argmax(z_KV),
        support_size_K=support_KV.sum(dim=1),
        logprob_K=token_logit_K.squeeze(1) - log_normalizer_K,
        rank_K=(z_KV >= token_logit_K).sum(dim=1),
        # A forbidden token has p = 0, and 0·(−inf) would be nan.
        entropy_K=-(logprob_KV.exp() * logprob_KV.masked_fill(~z_KV.isfinite(), 0)).sum(dim=1),
    )


def _gumbel_max(request: DrawRequest, support_KV: Tensor) -> Tensor:
    """argmax of (z − r)/T + g on each row's support; 0 where the support is empty.

    Works on the candidates alone: noise for a whole vocabulary would cost more than the row.
    """
    n_rows = support_KV.shape[0]
    row_C, token_C = support_KV.nonzero(as_tuple=True)
    z_C = request.logits_KV[row_C, token_C]
    z_min_K = _reduce(z_C, row_C, n_rows, "amin")
    z_max_K = _reduce(z_C, row_C, n_rows, "amax")
    temperature_C = request.temperature_K[row_C]
    difference_C = z_C - torch.where(request.temperature_K < 0, z_min_K, z_max_K)[row_C]
    noise_C = gumbel(
        philox(
            seed=request.seed_K[row_C],
            token_id=token_C,
            position=request.position_K[row_C],
            rule=request.rule_K[row_C],
            stream=Stream.DRAW,
        )
    )
    greedy_C = torch.zeros_like(z_C).masked_fill(difference_C < 0, -torch.inf)
    score_C = torch.where(temperature_C == 0, greedy_C, difference_C / temperature_C + noise_C)
    best_K = _reduce(score_C, row_C, n_rows, "amax")
    width = support_KV.shape[1]
    winner_C = token_C.masked_fill(score_C < best_K[row_C], width)
    return _reduce(winner_C, row_C, n_rows, "amin")


def _reduce(values_C: Tensor, row_C: Tensor, n_rows: int, how: str) -> Tensor:
    zeros_K = values_C.new_zeros(n_rows)
    return zeros_K.scatter_reduce(0, row_C, values_C, reduce=how, include_self=False)


def _first_argmax(z_KV: Tensor) -> Tensor:
    """Lowest id among the largest logits; torch.argmax does not promise which one it gives."""
    ids_V = torch.arange(z_KV.shape[1], device=z_KV.device)
    is_peak_KV = z_KV == z_KV.amax(dim=1, keepdim=True)
    return torch.where(is_peak_KV, ids_V, z_KV.shape[1] - 1).amin(dim=1)
