"""One injection for each of K rows: candidates, draw, and what it displaced. The host's version.

Semantics: S = support ∩ vocabulary, empty where the most likely token is guarded; a = argmax over S
of ((z − r)/T + g), r = min z on S for T < 0 and max for T > 0, g standard Gumbel noise; ties go to
the lowest id. Subtracting r keeps the exponents ≤ 0 whatever the sign of T, so nothing overflows;
T = ±inf leaves the noise alone, which is the uniform draw. A row that is the r-th of its siblings
takes the r-th best candidate instead (Gumbel top-k, 1903.06059).

Rows are taken a few at a time, so that all passes over a row but the first find it in the cache;
then the candidates of all of them, which are few, are drawn from together.

Shapes: R batch rows, K rows, V vocabulary, N vocabulary masks, C tokens of all rows that reach the
lower bound of their support, S those in their support.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.philox import Stream, gumbel, philox
from negtemp_data.sampling.stats import RowStats, Scratch, row_chunks, row_stats
from negtemp_data.sampling.supports import Limits, Uses, bounds

_NO_TOKEN = torch.iinfo(torch.int64).max

_MOST_CANDIDATES = 1 << 18
"""Candidates drawn from together: their random numbers take about 100 bytes each."""


class DrawRequest(NamedTuple):
    """What to draw from each row."""

    row_K: Tensor
    """int64 rows of the batch."""
    mask_NV: Tensor
    """bool, the vocabularies."""
    vocabulary_K: Tensor
    """int64 index of each row's vocabulary."""
    guard_K: Tensor
    """int64 index of the mask of tokens that must not be displaced."""
    limits: Limits
    """The support."""
    uses: Uses
    temperature_K: Tensor
    """float32, any sign, ±inf; 0 is the most likely candidate."""
    seed_K: Tensor
    """int64 keys of the noise."""
    position_K: Tensor
    """int64."""
    rule_K: Tensor
    """int64 index of the rule in its schedule."""
    order_K: Tensor | None
    """int64: take this candidate, modulo |S|, counted from the best; None: all take the best."""

    def select(self, chosen: Tensor | slice) -> "DrawRequest":
        """The request of some rows."""
        return self._replace(
            row_K=self.row_K[chosen],
            vocabulary_K=self.vocabulary_K[chosen],
            guard_K=self.guard_K[chosen],
            limits=self.limits.select(chosen),
            temperature_K=self.temperature_K[chosen],
            seed_K=self.seed_K[chosen],
            position_K=self.position_K[chosen],
            rule_K=self.rule_K[chosen],
            order_K=None if self.order_K is None else self.order_K[chosen],
        )


class Draw(NamedTuple):
    """The outcome; of rows with fewer than two candidates only `support_size_K` means anything."""

    token_id_K: Tensor
    displaced_id_K: Tensor
    support_size_K: Tensor
    logprob_K: Tensor
    rank_K: Tensor
    entropy_K: Tensor


class _Part(NamedTuple):
    """Some rows, and their tokens that reach the lower bound of the support."""

    row_C: Tensor
    token_C: Tensor
    logit_C: Tensor
    upper_K: Tensor
    """Upper bound of the support."""
    stats: RowStats


def draw(logits_RV: Tensor, request: DrawRequest, scratch: Scratch) -> Draw:
    """Draws one token per row of logits on the host.

    Args:
        logits_RV: float32; −inf entries are forbidden tokens and never drawn. Not changed.
        request: What to draw; at least one row.
        scratch: Memory for a few rows at a time.
    """
    draws = [_draw_from(part, rows) for part, rows in _parts(logits_RV, request, scratch)]
    return draws[0] if len(draws) == 1 else Draw(*map(torch.cat, zip(*draws, strict=True)))


def _parts(
    logits_RV: Tensor, request: DrawRequest, scratch: Scratch
) -> Iterator[tuple[_Part, DrawRequest]]:
    """Candidates of runs of rows, as many rows together as have not too many of them."""
    n_rows = len(request.row_K)
    chunks: list[_Part] = []
    begin = n_candidates = 0
    for rows in row_chunks(n_rows, logits_RV.shape[1]):
        z_KV = scratch.take(logits_RV, request.row_K[rows])
        limits = request.limits.select(rows)
        chunk = _find_candidates(z_KV, limits, request.uses, scratch)
        chunks.append(chunk._replace(row_C=chunk.row_C + (rows.start - begin)))
        n_candidates += len(chunk.row_C)
        if rows.stop == n_rows or n_candidates > _MOST_CANDIDATES:
            is_all = rows.stop - begin == n_rows
            yield _join(chunks), request if is_all else request.select(slice(begin, rows.stop))
            chunks, begin, n_candidates = [], rows.stop, 0


def _join(chunks: list[_Part]) -> _Part:
    if len(chunks) == 1:
        return chunks[0]
    return _Part(
        row_C=torch.cat([chunk.row_C for chunk in chunks]),
        token_C=torch.cat([chunk.token_C for chunk in chunks]),
        logit_C=torch.cat([chunk.logit_C for chunk in chunks]),
        upper_K=torch.cat([chunk.upper_K for chunk in chunks]),
        stats=RowStats(*map(torch.cat, zip(*(chunk.stats for chunk in chunks), strict=True))),
    )


def _find_candidates(z_KV: Tensor, limits: Limits, uses: Uses, scratch: Scratch) -> _Part:
    """Tokens from the support's lower bound on, whatever their vocabulary: a rank counts these."""
    stats = row_stats(z_KV, scratch)
    lower_K, upper_K = bounds(z_KV, stats, limits, uses)
    # A bound of −inf must not let forbidden tokens in.
    lower_K = lower_K.clamp(min=torch.finfo(torch.float32).min)
    flat_C = torch.from_numpy(_true_indices(scratch.reaches(z_KV, lower_K).numpy()))
    row_C = flat_C // z_KV.shape[1]
    token_C = flat_C - row_C * z_KV.shape[1]
    return _Part(row_C, token_C, z_KV.view(-1)[flat_C], upper_K, stats)


def _true_indices(mask_KV: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat indices of the true entries, rising; quick where they are few."""
    flat = mask_KV.reshape(-1)
    if flat.size % 8:
        return np.flatnonzero(flat)
    # Eight entries at a time are one number, and most of those are 0.
    groups = np.flatnonzero(flat.view(np.uint64))
    indices = (groups[:, None] * 8 + np.arange(8)).reshape(-1)
    return indices[flat[indices]]


def _draw_from(part: _Part, request: DrawRequest) -> Draw:
    row_C, token_C, z_C, _, stats = part
    n_rows = len(request.row_K)
    is_free_K = ~request.mask_NV[request.guard_K, stats.argmax_K]
    is_member_C = request.mask_NV[request.vocabulary_K[row_C], token_C]
    is_member_C &= is_free_K[row_C] & (z_C <= part.upper_K[row_C])
    member_C = is_member_C.nonzero().squeeze(1)
    row_S, token_S = row_C[member_C], token_C[member_C]
    score_S = _scores(request, row_S, token_S, z_C[member_C])
    size_K = torch.bincount(row_S, minlength=n_rows)
    if request.order_K is None:
        best_K = _reduce(score_S, row_S, n_rows, "amax")
        winner_S = token_S.masked_fill(score_S < best_K[row_S], _NO_TOKEN)
        token_id_K = _reduce(winner_S, row_S, n_rows, "amin")
    else:
        token_id_K = _take_in_order(score_S, row_S, token_S, size_K, request.order_K)
    # Rows without a candidate are given the peak, so that what follows has something to look at.
    token_id_K = torch.where(size_K > 0, token_id_K, stats.argmax_K)
    token_logit_K = stats.peak_K.clone()
    is_token_C = token_C == token_id_K[row_C]
    token_logit_K[row_C[is_token_C]] = z_C[is_token_C]
    return Draw(
        token_id_K=token_id_K,
        displaced_id_K=stats.argmax_K,
        support_size_K=size_K,
        logprob_K=token_logit_K - stats.log_normalizer_K,
        rank_K=torch.bincount(row_C[z_C >= token_logit_K[row_C]], minlength=n_rows),
        entropy_K=stats.entropy_K,
    )


def _scores(request: DrawRequest, row_S: Tensor, token_S: Tensor, z_S: Tensor) -> Tensor:
    """(z − r)/T + g of the members of the supports; z − r, without noise, for T = 0."""
    n_rows = len(request.row_K)
    z_min_K = _reduce(z_S, row_S, n_rows, "amin")
    z_max_K = _reduce(z_S, row_S, n_rows, "amax")
    temperature_S = request.temperature_K[row_S]
    difference_S = z_S - torch.where(request.temperature_K < 0, z_min_K, z_max_K)[row_S]
    noise_S = gumbel(
        philox(
            seed=request.seed_K[row_S],
            token_id=token_S,
            position=request.position_K[row_S],
            rule=request.rule_K[row_S],
            stream=Stream.DRAW,
        )
    )
    # An overflowing difference over an infinite temperature would be nan.
    scaled_S = (difference_S / temperature_S).masked_fill(temperature_S.isinf(), 0)
    return torch.where(temperature_S == 0, difference_S, scaled_S + noise_S)


def _take_in_order(
    score_S: Tensor, row_S: Tensor, token_S: Tensor, size_K: Tensor, order_K: Tensor
) -> Tensor:
    """The candidate number order_K mod |S| of each row, from the best; any where S is empty."""
    # Stable sorts, least important key first; tokens rise within a row already.
    by_score_S = score_S.argsort(descending=True, stable=True)
    in_order_S = by_score_S[row_S[by_score_S].argsort(stable=True)]
    begin_K = size_K.cumsum(0) - size_K
    chosen_K = begin_K + order_K % size_K.clamp(min=1)
    # A row without candidates may point behind the last one.
    padded_S = torch.cat([token_S[in_order_S], token_S.new_zeros(1)])
    return padded_S[chosen_K]


def _reduce(values_S: Tensor, row_S: Tensor, n_rows: int, how: str) -> Tensor:
    zeros_K = values_S.new_zeros(n_rows)
    return zeros_K.scatter_reduce(0, row_S, values_S, reduce=how, include_self=False)
