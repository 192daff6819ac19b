"""What bases make of rows, by operations of torch on whole batches: the slow and plain way.

Shapes: B rows, V vocabulary.
"""

import torch

from negtemp_data.sampling.supports import bounds, top_k_bound, top_p_bound


def sorted_bounds(z_BV, stats, limits, uses):
    """Least and largest logit of each row's support."""
    lower_B, upper_B = bounds(stats, limits, uses)
    if uses.top_p:
        lower_B = torch.maximum(lower_B, top_p_bound(z_BV, stats.log_normalizer_K, limits.top_p_K))
    if uses.top_k:
        lower_B = torch.maximum(lower_B, top_k_bound(z_BV, limits.top_k_K, uses.top_k))
    if uses.xtc:
        upper_B = _xtc_bound(z_BV, stats.log_normalizer_K, limits.xtc_K)
    return lower_B, upper_B


def _xtc_bound(z_BV, log_normalizer_B, xtc_B):
    is_above_BV = z_BV >= (log_normalizer_B + xtc_B.log())[:, None]
    least_B = torch.where(is_above_BV, z_BV, torch.inf).amin(dim=1)
    least_B = least_B.masked_fill(is_above_BV.sum(dim=1) < 2, -torch.inf)
    return least_B.masked_fill(xtc_B == 0, torch.inf)


def rescaled(z_BV, stats, request):
    """The rows as the engine is to sample from them at T = 1; `z_BV` is not changed."""
    lower_B, upper_B = sorted_bounds(z_BV, stats, request.limits, request.uses)
    allowed_BV = z_BV.isfinite() & request.mask_NV[request.vocabulary_B]
    support_BV = allowed_BV & (z_BV >= lower_B[:, None]) & (z_BV <= upper_B[:, None])
    support_BV |= _peak_of(z_BV, allowed_BV) & ~support_BV.any(dim=1, keepdim=True)
    y_BV = _truncate(_scale(z_BV, support_BV, request.temperature_B), request)
    is_changed_B = support_BV.any(dim=1) & request.is_wanted_B
    return torch.where(is_changed_B[:, None], y_BV, z_BV)


def _truncate(y_BV, request):
    lower_B = request.log_min_p_B
    if request.largest_k:
        y_BV = y_BV.masked_fill(y_BV < lower_B[:, None], -torch.inf)
        lower_B = top_k_bound(y_BV, request.top_k_B, request.largest_k)
    if request.any_top_p:
        y_BV = y_BV.masked_fill(y_BV < lower_B[:, None], -torch.inf)
        lower_B = top_p_bound(y_BV, y_BV.logsumexp(dim=1), request.top_p_B)
    return y_BV.masked_fill(y_BV < lower_B[:, None], -torch.inf)


def _peak_of(z_BV, allowed_BV):
    """bool [B, V]: the first of the most likely allowed tokens of each row."""
    masked_BV = z_BV.masked_fill(~allowed_BV, -torch.inf)
    is_peak_BV = allowed_BV & (masked_BV == masked_BV.amax(dim=1, keepdim=True))
    return is_peak_BV & (is_peak_BV.cumsum(dim=1) == 1)


def _scale(z_BV, support_BV, temperature_B):
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
