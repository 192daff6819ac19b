# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""One reading of whole rows, on a GPU: their statistics, and the largest logit of each block.

A program takes a row and says nothing to the host. Arguments are pointers to contiguous tensors,
but for `logits_RV`, whose rows may lie apart, and the numbers `row_stride`, `width` and `n_blocks`.

Shapes: R batch rows, K rows looked at, V vocabulary, B blocks of a row, G blocks in hand, L = 128
logits of a block.
"""

import triton
import triton.language as tl

LANES = tl.constexpr(128)
"""Logits of a block: one warp takes it at once, so that its maximum costs no shared memory."""

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The least float32: stands in for −inf where a difference is taken."""
_GONE = tl.constexpr(-128.0)
"""Its exponential is 0 in float32, and 0 times it is not nan."""


@triton.jit
def scan_rows(
    logits_RV,
    row_stride,
    row_K,
    width,
    peak_K,
    argmax_K,
    log_normalizer_K,
    entropy_K,
    margin_K,
    deviation_K,
    top_KB,
    n_blocks,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Statistics of rows; nan for a row with a nan or +inf, or without a finite entry.

    Args:
        logits_RV: float32.
        row_stride: Logits from one row to the next.
        row_K: int64.
        width: V.
        peak_K: float32, the largest logit.
        argmax_K: int64, the lowest id that has it.
        log_normalizer_K: float32.
        entropy_K: float32.
        margin_K: float32.
        deviation_K: float32, population deviation of the finite logits, or None.
        top_KB: float32, the largest logit of each block.
        n_blocks: B.
        BLOCKS: G.
        STAGES: Loads under way at a time.
    """
    k = tl.program_id(0)
    z_V = logits_RV + tl.load(row_K + k) * row_stride
    top_B = top_KB + k * n_blocks
    block_G = tl.arange(0, BLOCKS)
    id_GL = block_G[:, None] * LANES + tl.arange(0, LANES)[None, :]
    # Of the blocks number g, g + G, …: largest maximum, the first with it, second largest maximum.
    best_G = tl.full((BLOCKS,), float("-inf"), tl.float32)
    place_G = tl.full((BLOCKS,), 0, tl.int32)
    second_G = tl.full((BLOCKS,), float("-inf"), tl.float32)
    # Σ exp(z − r) and Σ exp(z − r)·(z − r), r the best so far.
    mass_GL = tl.full((BLOCKS, LANES), 0.0, tl.float32)
    moment_GL = tl.full((BLOCKS, LANES), 0.0, tl.float32)
    if deviation_K is not None:
        pivot_G = tl.full((BLOCKS,), LOWEST, tl.float32)
        count_GL = tl.full((BLOCKS, LANES), 0, tl.int32)
        sum_GL = tl.full((BLOCKS, LANES), 0.0, tl.float64)
        square_GL = tl.full((BLOCKS, LANES), 0.0, tl.float64)

    # The last blocks are taken apart, so that the others need no mask.
    begin_last = (n_blocks - 1) // BLOCKS * BLOCKS
    for first in tl.range(0, begin_last, BLOCKS, num_stages=STAGES):
        z_GL = tl.load(z_V + first * LANES + id_GL)
        top_G = tl.max(z_GL, axis=1)
        tl.store(top_B + first + block_G, top_G)
        if deviation_K is not None:
            pivot_G = _pivot(pivot_G, best_G, top_G)
            count_GL, sum_GL, square_GL = _add(z_GL, pivot_G, count_GL, sum_GL, square_GL)
        mass_GL, moment_GL = _weigh(z_GL, best_G, top_G, mass_GL, moment_GL)
        best_G, place_G, second_G = _rank(first, top_G, best_G, place_G, second_G)
    id_GL += begin_last * LANES
    z_GL = tl.load(z_V + id_GL, mask=id_GL < width, other=float("-inf"))
    top_G = tl.max(z_GL, axis=1)
    tl.store(top_B + begin_last + block_G, top_G, mask=begin_last + block_G < n_blocks)
    if deviation_K is not None:
        pivot_G = _pivot(pivot_G, best_G, top_G)
        count_GL, sum_GL, square_GL = _add(z_GL, pivot_G, count_GL, sum_GL, square_GL)
    mass_GL, moment_GL = _weigh(z_GL, best_G, top_G, mass_GL, moment_GL)
    best_G, place_G, second_G = _rank(begin_last, top_G, best_G, place_G, second_G)

    peak = tl.max(best_G, axis=0)
    argmax, second = _two_largest(z_V, width, n_blocks, peak, best_G, place_G, second_G, BLOCKS)
    reference, mass, moment = _total(peak, best_G, mass_GL, moment_GL)
    # A nan or +inf has made the mass nan; without a finite entry it is 0.
    is_sound = mass > 0
    mass = tl.where(is_sound, mass, 1.0)
    log_mass = tl.log(mass)
    tl.store(argmax_K + k, argmax.to(tl.int64))
    _store(peak_K + k, peak, is_sound)
    _store(log_normalizer_K + k, reference + log_mass, is_sound)
    _store(entropy_K + k, tl.maximum(log_mass - moment / mass, 0.0), is_sound)
    _store(margin_K + k, (1.0 - tl.exp(second - reference)) / mass, is_sound)
    if deviation_K is not None:
        deviation = _deviation(pivot_G, count_GL, sum_GL, square_GL)
        _store(deviation_K + k, deviation, is_sound)


@triton.jit
def _weigh(z_GL, best_G, top_G, mass_GL, moment_GL):
    """Adds logits to the sums, which move to a new reference where a larger maximum has come."""
    old_G = tl.maximum(best_G, LOWEST)
    new_G = tl.maximum(old_G, top_G)
    shift_GL = tl.maximum(old_G - new_G, _GONE)[:, None]
    scale_GL = tl.exp(shift_GL)
    difference_GL = z_GL - new_G[:, None]
    power_GL = tl.exp(difference_GL)
    moment_GL = scale_GL * moment_GL + (scale_GL * shift_GL) * mass_GL
    # Forbidden tokens: 0·(−inf) would be nan.
    moment_GL += power_GL * tl.maximum(difference_GL, _GONE)
    return scale_GL * mass_GL + power_GL, moment_GL


@triton.jit
def _rank(first, top_G, best_G, place_G, second_G):
    """The largest maximum so far, the first blocks in hand when it came, and the second largest."""
    place_G = tl.where(top_G > best_G, first, place_G)
    second_G = tl.maximum(second_G, tl.minimum(best_G, top_G))
    return tl.maximum(best_G, top_G), place_G, second_G


@triton.jit
def _pivot(pivot_G, best_G, top_G):
    """One of the logits so far, or the least float32 before the first finite one.

    However far out it lies, its squared distance from the mean is at most n variances, so that
    float64 loses a few digits at worst.
    """
    return tl.where(best_G == float("-inf"), tl.maximum(top_G, LOWEST), pivot_G)


@triton.jit
def _add(z_GL, pivot_G, count_GL, sum_GL, square_GL):
    """Adds the finite logits to the sums of their distances from the pivot, and of the squares."""
    is_finite_GL = z_GL > float("-inf")
    pivot_GL = pivot_G[:, None]
    off_GL = tl.where(is_finite_GL, z_GL, pivot_GL).to(tl.float64) - pivot_GL.to(tl.float64)
    return count_GL + is_finite_GL.to(tl.int32), sum_GL + off_GL, square_GL + off_GL * off_GL


@triton.jit
def _two_largest(z_V, width, n_blocks, peak, best_G, place_G, second_G, BLOCKS: tl.constexpr):
    """The lowest id of the largest logit, and the second largest logit, which may be as large."""
    block_G = tl.arange(0, BLOCKS)
    block = tl.min(tl.where(best_G == peak, place_G + block_G, n_blocks - 1), axis=0)
    lane_L = tl.arange(0, LANES)
    id_L = block * LANES + lane_L
    z_L = tl.load(z_V + id_L, mask=id_L < width, other=float("-inf"))
    is_peak_L = (z_L == peak) & (id_L < width)
    # A block of nan has no peak.
    lane = tl.min(tl.where(is_peak_L, lane_L, LANES), axis=0) % LANES
    others_G = tl.where(block_G == block % BLOCKS, second_G, best_G)
    second = tl.max(tl.where(lane_L == lane, float("-inf"), z_L), axis=0)
    return block * LANES + lane, tl.maximum(second, tl.max(others_G, axis=0))


@triton.jit
def _total(peak, best_G, mass_GL, moment_GL):
    """The peak as a reference, and the sums of all blocks with it."""
    reference = tl.maximum(peak, LOWEST)
    shift_G = tl.maximum(tl.maximum(best_G, LOWEST) - reference, _GONE)
    scale_G = tl.exp(shift_G)
    mass_G = tl.sum(mass_GL, axis=1)
    moment_G = tl.sum(moment_GL, axis=1) + shift_G * mass_G
    return reference, tl.sum(scale_G * mass_G, axis=0), tl.sum(scale_G * moment_G, axis=0)


@triton.jit
def _store(pointer, value, is_sound):
    tl.store(pointer, tl.where(is_sound, value, float("nan")))


@triton.jit
def _deviation(pivot_G, count_GL, sum_GL, square_GL):
    """The population deviation, from sums of differences from pivots.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979).
    """
    count_G = tl.sum(count_GL, axis=1).to(tl.float64)
    sum_G = tl.sum(sum_GL, axis=1)
    offset_G = sum_G / tl.maximum(count_G, 1.0)
    mean_G = pivot_G.to(tl.float64) + offset_G
    within_G = tl.sum(square_GL, axis=1) - sum_G * offset_G
    count = tl.maximum(tl.sum(count_G, axis=0), 1.0)
    mean = tl.sum(count_G * mean_G, axis=0) / count
    apart_G = mean_G - mean
    squares = tl.sum(tl.maximum(within_G, 0.0) + count_G * apart_G * apart_G, axis=0)
    return tl.sqrt(squares / count).to(tl.float32)
