"""One base for each of B rows: what it keeps, and at which temperature.

In this order: S = support ∩ vocabulary on softmax(z); y = (z − r)/T on S, r = max z on S for T > 0
and min for T < 0, so that y ≤ 0 whatever the sign of T; then min_p, top_k and top_p on y. The
engine then samples from y at T = 1 without limits of its own. Where S is empty it is the most
likely token of the vocabulary, and where that is forbidden too the row stays as it is.

`rescaled` does it by operations on whole batches.

Shapes: B rows, V vocabulary, N vocabulary masks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from negtemp_data.sampling.stats import RowStats
from negtemp_data.sampling.supports import Limits, Uses, sorted_bounds, top_k_bound, top_p_bound


class RescaleRequest(NamedTuple):
    """What to make of each row."""

    row_B: Tensor
    """int64 rows of the batch, each once."""
    is_wanted_B: Tensor
    """bool; the other rows stay as they are."""
    mask_NV: Tensor
    """bool, the vocabularies."""
    vocabulary_B: Tensor
    """int64 index of each row's vocabulary."""
    limits: Limits
    """The support."""
    uses: Uses
    temperature_B: Tensor
    """float32, any sign, ±inf; 0 is the most likely token of S."""
    log_min_p_B: Tensor
    """float32, on y. Neutral: −inf."""
    top_k_B: Tensor
    """int64, on y. Neutral: 0."""
    largest_k: int
    """The largest of all top_k, as the host knows."""
    top_p_B: Tensor
    """float64, on y. Neutral: 1."""
    any_top_p: bool
    """Whether some top_p is below 1, as the host knows."""


def rescaled(z_BV: Tensor, stats: RowStats, request: RescaleRequest) -> Tensor:
    """The rows as the engine is to sample from them at T = 1; `z_BV` is not changed."""
    lower_B, upper_B = sorted_bounds(z_BV, stats, request.limits, request.uses)
    allowed_BV = z_BV.isfinite() & request.mask_NV[request.vocabulary_B]
    support_BV = allowed_BV & (z_BV >= lower_B[:, None]) & (z_BV <= upper_B[:, None])
    support_BV |= _peak_of(z_BV, allowed_BV) & ~support_BV.any(dim=1, keepdim=True)
    y_BV = _truncate(_scale(z_BV, support_BV, request.temperature_B), request)
    is_changed_B = support_BV.any(dim=1) & request.is_wanted_B
    return torch.where(is_changed_B[:, None], y_BV, z_BV)


def _truncate(y_BV: Tensor, request: RescaleRequest) -> Tensor:
    lower_B = request.log_min_p_B
    if request.largest_k:
        y_BV = y_BV.masked_fill(y_BV < lower_B[:, None], -torch.inf)
        lower_B = top_k_bound(y_BV, request.top_k_B, request.largest_k)
    if request.any_top_p:
        y_BV = y_BV.masked_fill(y_BV < lower_B[:, None], -torch.inf)
        lower_B = top_p_bound(y_BV, y_BV.logsumexp(dim=1), request.top_p_B)
    return y_BV.masked_fill(y_BV < lower_B[:, None], -torch.inf)


def _peak_of(z_BV: Tensor, allowed_BV: Tensor) -> Tensor:
    """bool [B, V]: the first of the most likely allowed tokens of each row."""
    masked_BV = z_BV.masked_fill(~allowed_BV, -torch.inf)
    is_peak_BV = allowed_BV & (masked_BV == masked_BV.amax(dim=1, keepdim=True))
    return is_peak_BV & (is_peak_BV.cumsum(dim=1) == 1)


def _scale(z_BV: Tensor, support_BV: Tensor, temperature_B: Tensor) -> Tensor:
    """(z − r)/T on the support, −inf elsewhere; never above 0."""
    temperature_B1 = temperature_B[:, None]
    least_B1 = z_BV.masked_fill(~support_BV, torch.inf).amin(dim=1, keepdim=True)
    most_B1 = z_BV.masked_fill(~support_BV, -torch.inf).amax(dim=1, keepdim=True)
    y_BV = (z_BV - torch.where(temperature_B1 < 0, least_B1, most_B1)) / temperature_B1
    # An overflowing difference over an infinite temperature would be nan.
    y_BV = y_BV.masked_fill(temperature_B1.isinf(), 0)
    greedy_BV = torch.zeros_like(y_BV).masked_fill(~_peak_of(z_BV, support_BV), -torch.inf)
    y_BV = torch.where(temperature_B1 == 0, greedy_BV, y_BV)
    return y_BV.masked_fill(~support_BV, -torch.inf)
