"""One injection for each of K rows: candidates, draw, and what it displaced. The host's version.

Semantics: S = support ∩ vocabulary, empty where the most likely token is guarded; a = argmax over S
of ((z − r)/T + g), r = min z on S for T < 0 and max for T > 0, g standard Gumbel noise; ties go to
the lowest id. Subtracting r keeps the exponents ≤ 0 whatever the sign of T, so nothing overflows;
T = ±inf leaves the noise alone, which is the uniform draw. A row that is the r-th of its siblings
takes the r-th best candidate instead (Gumbel top-k, 1903.06059).

Rows are taken a few at a time, so that all passes over a row but the first find it in the cache;
then the candidates of all of them, which are few, are drawn from together.

Shapes: R batch rows, K rows, V vocabulary, M vocabulary masks, C tokens of all rows that reach the
lower bound of their support, S those in their support, N rows that have such, B blocks of a row, E
tokens of a block, H blocks that hold candidates.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.philox import Stream, gumbel, philox
from negtemp_data.sampling.stats import BLOCK, RowStats, Scratch, blocks, row_chunks, row_stats
from negtemp_data.sampling.supports import Limits, Uses, bounds

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]

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
    """Some rows, and their tokens that reach the lower bound of the support, by row and id."""

    row_C: Integers
    token_C: Integers
    logit_C: Floats
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
        row_C=np.concatenate([chunk.row_C for chunk in chunks]),
        token_C=np.concatenate([chunk.token_C for chunk in chunks]),
        logit_C=np.concatenate([chunk.logit_C for chunk in chunks]),
        upper_K=torch.cat([chunk.upper_K for chunk in chunks]),
        stats=RowStats(*map(torch.cat, zip(*(chunk.stats for chunk in chunks), strict=True))),
    )


def _find_candidates(z_KV: Tensor, limits: Limits, uses: Uses, scratch: Scratch) -> _Part:
    """Tokens from the support's lower bound on, whatever their vocabulary: a rank counts these."""
    z_KBE = blocks(z_KV)
    peak_KB = z_KBE.amax(dim=2)
    stats = row_stats(z_KV, peak_KB, scratch)
    lower, upper_K = bounds(z_KV, stats, limits, uses)
    # A bound of −inf must not let forbidden tokens in.
    lower_K = lower.clamp(min=torch.finfo(torch.float32).min).numpy()
    # Most blocks hold none, and are passed over by their peaks.
    row_H, block_H = (peak_KB.numpy() >= lower_K[:, None]).nonzero()
    z_HE = z_KBE.numpy()[row_H, block_H]
    hit_C, place_C = (z_HE >= lower_K[row_H, None]).nonzero()
    token_C = block_H[hit_C] * BLOCK + place_C
    return _Part(row_H[hit_C], token_C, z_HE[hit_C, place_C], upper_K, stats)


def _draw_from(part: _Part, request: DrawRequest) -> Draw:
    row_C, token_C, z_C, upper_K, stats = part
    n_rows, mask_NV = len(request.row_K), request.mask_NV.numpy()
    argmax_K, peak_K = stats.argmax_K.numpy(), stats.peak_K.numpy()
    is_free_K = ~mask_NV[request.guard_K.numpy(), argmax_K]
    is_member_C = mask_NV[request.vocabulary_K.numpy()[row_C], token_C]
    is_member_C &= is_free_K[row_C] & (z_C <= upper_K.numpy()[row_C])
    row_S, token_S, z_S = row_C[is_member_C], token_C[is_member_C], z_C[is_member_C]
    size_K = np.bincount(row_S, minlength=n_rows)
    # Rows without a candidate are given the peak, so that what follows has something to look at.
    token_id_K, token_logit_K = argmax_K.copy(), peak_K.copy()
    row_N = size_K.nonzero()[0]
    if len(row_N):
        score_S = _scores(request, row_S, token_S, z_S, size_K[row_N])
        winner_N = _winners(score_S, row_S, size_K[row_N], request.order_K, row_N)
        token_id_K[row_N], token_logit_K[row_N] = token_S[winner_N], z_S[winner_N]
    rank_K = np.bincount(row_C[z_C >= token_logit_K[row_C]], minlength=n_rows)
    return Draw(
        token_id_K=torch.from_numpy(token_id_K),
        displaced_id_K=stats.argmax_K,
        support_size_K=torch.from_numpy(size_K),
        logprob_K=torch.from_numpy(token_logit_K) - stats.log_normalizer_K,
        rank_K=torch.from_numpy(rank_K),
        entropy_K=stats.entropy_K,
    )


def _scores(
    request: DrawRequest, row_S: Integers, token_S: Integers, z_S: Floats, size_N: Integers
) -> Floats:
    """(z − r)/T + g of the members of the supports; z − r, without noise, for T = 0."""
    begin_N = size_N.cumsum() - size_N
    temperature_S = request.temperature_K.numpy()[row_S]
    reference_N = np.where(
        temperature_S[begin_N] < 0,
        np.minimum.reduceat(z_S, begin_N),
        np.maximum.reduceat(z_S, begin_N),
    )
    row = torch.from_numpy(row_S)
    word = philox(
        seed=request.seed_K[row],
        token_id=torch.from_numpy(token_S),
        position=request.position_K[row],
        rule=request.rule_K[row],
        stream=Stream.DRAW,
    )
    with np.errstate(all="ignore"):
        difference_S = z_S - reference_N.repeat(size_N)
        # An overflowing difference over an infinite temperature would be nan.
        scaled_S = np.where(np.isinf(temperature_S), 0, difference_S / temperature_S)
    scores: Floats = np.where(temperature_S == 0, difference_S, scaled_S + gumbel(word).numpy())
    return scores


def _winners(
    score_S: Floats, row_S: Integers, size_N: Integers, order_K: Tensor | None, row_N: Integers
) -> Integers:
    """Where each row's token is among the members: the best, or number order_K mod |S| from it."""
    begin_N = size_N.cumsum() - size_N
    winner_N: Integers
    if order_K is None:
        best_S = np.maximum.reduceat(score_S, begin_N).repeat(size_N)
        best = (score_S == best_S).nonzero()[0]
        # Of several equals the first.
        winner_N = best[np.unique(row_S[best], return_index=True)[1]]
    else:
        # Stable: of equals the lower id comes first.
        in_order_S = np.lexsort((-score_S, row_S))
        winner_N = in_order_S[begin_N + order_K.numpy()[row_N] % size_N]
    return winner_N
