# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels of a step: one program per row, and no word from them to the host.

`scan_rows` reads whole rows once. `draw_from_rows` reads again only the blocks of a row whose
largest logit reaches the lower bound of the support, and they alone hold the candidates and every
token that ranks before one. `write_one_hot` writes the injected rows. `rescale_rows` makes of rows
what their bases ask for, but for limits that take sorting.

All arguments up to the first constexpr are pointers to contiguous tensors, apart from
`logits_RV`, whose rows may lie apart, and the numbers `row_stride`, `width`, `mask_stride` and
`n_blocks`. `draw_from_rows` and `rescale_rows` are to be launched without fused
multiply-adds, so that their operations round as they do on the host.

Shapes: R batch rows, K rows looked at, V vocabulary, N vocabulary masks, B blocks of a row, G
blocks in hand, L = 128 logits of a block.
"""

import triton
import triton.language as tl

from negtemp_data.sampling.philox import MULTIPLIERS, ROUNDS, WEYL, Stream

LANES = tl.constexpr(128)
"""Logits of a block: one warp takes it at once, so that its maximum costs no shared memory."""

_LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The least float32: stands in for −inf where a difference is taken."""
_HIGHEST = tl.constexpr(3.4028234663852886e38)
_GONE = tl.constexpr(-128.0)
"""Its exponential is 0 in float32, and 0 times it is not nan."""

_MULTIPLIER_0 = tl.constexpr(MULTIPLIERS[0])
_MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[1])
_WEYL_0 = tl.constexpr(WEYL[0])
_WEYL_1 = tl.constexpr(WEYL[1])
_ROUNDS = tl.constexpr(ROUNDS)
_DRAW = tl.constexpr(int(Stream.DRAW))
_HALF_UNIT = tl.constexpr(2.0**-33)
_LARGEST_U = tl.constexpr(1.0 - 2.0**-24)

_NO_KEY = tl.constexpr(-(2**63))
_ANY_KEY = tl.constexpr(2**63 - 1)
_ID_BITS = tl.constexpr(2**31 - 1)


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
        pivot_G = tl.full((BLOCKS,), _LOWEST, tl.float32)
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
    old_G = tl.maximum(best_G, _LOWEST)
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
    return tl.where(best_G == float("-inf"), tl.maximum(top_G, _LOWEST), pivot_G)


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
    reference = tl.maximum(peak, _LOWEST)
    shift_G = tl.maximum(tl.maximum(best_G, _LOWEST) - reference, _GONE)
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


@triton.jit
def draw_from_rows(
    logits_RV,
    row_stride,
    row_K,
    width,
    mask_NV,
    mask_stride,
    vocabulary_K,
    guard_K,
    min_p_K,
    epsilon_K,
    top_n_sigma_K,
    xtc_K,
    floor_K,
    temperature_K,
    seed_K,
    position_K,
    rule_K,
    order_K,
    peak_K,
    argmax_K,
    log_normalizer_K,
    deviation_K,
    top_KB,
    block_KB,
    n_blocks,
    token_id_K,
    support_size_K,
    logprob_K,
    rank_K,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Draws one token per row. The semantics are those of `negtemp_data.sampling.draw`.

    Arguments with the name of a column of `DrawRequest`, `Limits`, `RowStats` or `Draw` are that
    column, contiguous and of the same dtype. `deviation_K` and `top_KB` are as `scan_rows` gives
    them; `floor_K`, float32, is a further lower bound of the support; `block_KB`, int32, is memory
    for the blocks that reach the bound; PADDED is a power of two, at least B. `top_n_sigma_K` and
    `deviation_K`, `xtc_K`, `floor_K` and `order_K` are None where no row has such a thing.
    """
    k = tl.program_id(0)
    z_V = logits_RV + tl.load(row_K + k) * row_stride
    allowed_V = mask_NV + tl.load(vocabulary_K + k) * mask_stride
    block_B = block_KB + k * n_blocks
    argmax = tl.load(argmax_K + k)
    log_normalizer = tl.load(log_normalizer_K + k)
    is_barred = tl.load(mask_NV + tl.load(guard_K + k) * mask_stride + argmax)
    lower, upper, n_found = _find_support(
        k,
        z_V,
        width,
        is_barred != 0,
        min_p_K=min_p_K,
        epsilon_K=epsilon_K,
        top_n_sigma_K=top_n_sigma_K,
        xtc_K=xtc_K,
        floor_K=floor_K,
        peak_K=peak_K,
        log_normalizer_K=log_normalizer_K,
        deviation_K=deviation_K,
        top_B=top_KB + k * n_blocks,
        block_B=block_B,
        n_blocks=n_blocks,
        BLOCKS=BLOCKS,
        PADDED=PADDED,
    )
    size, least, most = _survey(z_V, allowed_V, block_B, n_found, width, lower, upper, BLOCKS)
    temperature = tl.load(temperature_K + k)
    origin = tl.where(size > 0, tl.where(temperature < 0, least, most), 0.0)
    seed = tl.load(seed_K + k)
    position = tl.load(position_K + k)
    rule = tl.load(rule_K + k)
    n_turns = 1
    if order_K is not None:
        n_turns = (tl.load(order_K + k) % tl.maximum(size, 1)).to(tl.int32) + 1
    # Each turn finds the best candidate behind the last one found.
    key = tl.full((), _ANY_KEY, tl.int64)
    for _ in range(0, n_turns):
        best_GL = tl.full((BLOCKS, LANES), _NO_KEY, tl.int64)
        for begin in range(0, n_found, BLOCKS):
            id_GL, z_GL = _load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
            is_member_GL = _is_member(allowed_V, id_GL, z_GL, lower, upper)
            noise_GL = gumbel(philox(seed, id_GL, position, rule))
            key_GL = _key(_score(z_GL, origin, temperature, noise_GL), id_GL)
            is_open_GL = is_member_GL & (key_GL < key)
            best_GL = tl.maximum(best_GL, tl.where(is_open_GL, key_GL, _NO_KEY))
        key = tl.max(best_GL)

    token = tl.where(size > 0, (key & _ID_BITS) ^ _ID_BITS, argmax)
    z_token = tl.load(z_V + token)
    tl.store(token_id_K + k, token)
    tl.store(support_size_K + k, size.to(tl.int64))
    tl.store(logprob_K + k, z_token - log_normalizer)
    n_above = _count(z_V, block_B, n_found, width, z_token, BLOCKS)
    tl.store(rank_K + k, n_above.to(tl.int64))


@triton.jit
def _find_support(
    k,
    z_V,
    width,
    is_barred,
    min_p_K,
    epsilon_K,
    top_n_sigma_K,
    xtc_K,
    floor_K,
    peak_K,
    log_normalizer_K,
    deviation_K,
    top_B,
    block_B,
    n_blocks,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Bounds of the support, and how many blocks hold it, which are written down; barred: none."""
    peak = tl.load(peak_K + k)
    log_normalizer = tl.load(log_normalizer_K + k)
    lower = _lower_bound(
        k,
        peak,
        log_normalizer,
        min_p_K=min_p_K,
        epsilon_K=epsilon_K,
        top_n_sigma_K=top_n_sigma_K,
        deviation_K=deviation_K,
        floor_K=floor_K,
    )
    wanted = lower
    if xtc_K is not None:
        xtc = tl.load(xtc_K + k)
        likely = tl.where(xtc > 0, log_normalizer + _log(xtc), float("inf"))
        wanted = tl.minimum(lower, likely)
    # No block reaches nan. A peak of nan is a row that has no meaning.
    wanted = tl.where((peak > float("-inf")) & (is_barred == 0), wanted, float("nan"))
    n_found = _find_blocks(top_B, block_B, n_blocks, wanted, PADDED)
    upper = float("inf")
    if xtc_K is not None:
        upper = _least_likely(z_V, block_B, n_found, width, likely, BLOCKS)
        upper = tl.where(xtc > 0, upper, float("inf"))
    return lower, upper, n_found


@triton.jit
def _lower_bound(k, peak, log_normalizer, min_p_K, epsilon_K, top_n_sigma_K, deviation_K, floor_K):
    """Least logit of the support, and never −inf: that would let forbidden tokens in."""
    by_peak = peak + _log(tl.load(min_p_K + k))
    lower = tl.maximum(by_peak, log_normalizer + _log(tl.load(epsilon_K + k)))
    if floor_K is not None:
        lower = tl.maximum(lower, tl.load(floor_K + k))
    if top_n_sigma_K is not None:
        n_sigma = tl.load(top_n_sigma_K + k)
        is_limited = n_sigma < float("inf")
        reach = tl.where(is_limited, n_sigma, 0.0) * tl.load(deviation_K + k)
        lower = tl.maximum(lower, tl.where(is_limited, peak - reach, float("-inf")))
    return tl.maximum(lower, _LOWEST)


@triton.jit
def _find_blocks(top_B, block_B, n_blocks, bound, PADDED: tl.constexpr):
    """Writes down the blocks whose maximum reaches `bound`; how many there are."""
    number_B = tl.arange(0, PADDED)
    top = tl.load(top_B + number_B, mask=number_B < n_blocks, other=float("-inf"))
    is_found = (top >= bound).to(tl.int32)
    place = tl.cumsum(is_found, axis=0) - 1
    tl.store(block_B + place, number_B, mask=is_found == 1)
    # Other threads than those that wrote them will read them.
    tl.debug_barrier()
    return tl.sum(is_found, axis=0)


@triton.jit
def _load_blocks(z_V, block_B, begin, n_found, width, BLOCKS: tl.constexpr):
    """Ids and logits of the next blocks found; −inf where there are no more."""
    place_G = begin + tl.arange(0, BLOCKS)
    block_G = tl.load(block_B + place_G, mask=place_G < n_found, other=0)
    id_GL = block_G[:, None] * LANES + tl.arange(0, LANES)[None, :]
    is_there_GL = (place_G < n_found)[:, None] & (id_GL < width)
    return id_GL, tl.load(z_V + id_GL, mask=is_there_GL, other=float("-inf"))


@triton.jit
def _is_member(allowed_V, id_GL, z_GL, lower, upper):
    is_within_GL = (z_GL >= lower) & (z_GL <= upper)
    return tl.load(allowed_V + id_GL, mask=is_within_GL, other=0) != 0


@triton.jit
def _survey(z_V, allowed_V, block_B, n_found, width, lower, upper, BLOCKS: tl.constexpr):
    """How many candidates there are, and their least and largest logit."""
    count_GL = tl.full((BLOCKS, LANES), 0, tl.int32)
    least_GL = tl.full((BLOCKS, LANES), float("inf"), tl.float32)
    most_GL = tl.full((BLOCKS, LANES), float("-inf"), tl.float32)
    for begin in range(0, n_found, BLOCKS):
        id_GL, z_GL = _load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
        is_member_GL = _is_member(allowed_V, id_GL, z_GL, lower, upper)
        count_GL += is_member_GL.to(tl.int32)
        least_GL = tl.minimum(least_GL, tl.where(is_member_GL, z_GL, float("inf")))
        most_GL = tl.maximum(most_GL, tl.where(is_member_GL, z_GL, float("-inf")))
    return tl.sum(count_GL), tl.min(least_GL), tl.max(most_GL)


@triton.jit
def _least_likely(z_V, block_B, n_found, width, bound, BLOCKS: tl.constexpr):
    """The least logit that reaches `bound`; −inf where fewer than two do."""
    count_GL = tl.full((BLOCKS, LANES), 0, tl.int32)
    least_GL = tl.full((BLOCKS, LANES), float("inf"), tl.float32)
    for begin in range(0, n_found, BLOCKS):
        _, z_GL = _load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
        is_above_GL = z_GL >= bound
        count_GL += is_above_GL.to(tl.int32)
        least_GL = tl.minimum(least_GL, tl.where(is_above_GL, z_GL, float("inf")))
    return tl.where(tl.sum(count_GL) < 2, float("-inf"), tl.min(least_GL))


@triton.jit
def _count(z_V, block_B, n_found, width, bound, BLOCKS: tl.constexpr):
    """How many logits reach `bound`, if all of their blocks were found."""
    count_GL = tl.full((BLOCKS, LANES), 0, tl.int32)
    for begin in range(0, n_found, BLOCKS):
        _, z_GL = _load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
        count_GL += (z_GL >= bound).to(tl.int32)
    return tl.sum(count_GL)


@triton.jit
def _score(z, origin, temperature, noise):
    """(z − r)/T + g; T = 0 leaves out the noise, T = ±inf leaves nothing else."""
    difference = z - origin
    is_finite = (temperature != 0) & (tl.abs(temperature) < float("inf"))
    scaled = tl.div_rn(difference, tl.where(is_finite, temperature, 1.0))
    score = tl.where(is_finite, scaled, 0.0) + noise
    return tl.where(temperature == 0, difference, score)


@triton.jit
def _key(score, token_id):
    """int64 that rises with the score, and among equal ones with falling ids."""
    # −0 is as large as 0, but has other bits.
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ _ID_BITS, bits)
    return (rising.to(tl.int64) << 32) | (token_id ^ _ID_BITS).to(tl.int64)


@triton.jit
def _log(x):
    return tl.where(x > 0, tl.log(tl.where(x > 0, x, 1.0)), float("-inf"))


@triton.jit
def philox(seed, token_id, position, rule):
    """uint32 words, the same as `negtemp_data.sampling.philox.philox` gives for a draw."""
    key_0 = seed.to(tl.uint32)
    key_1 = (seed >> 32).to(tl.uint32)
    c0 = token_id.to(tl.uint32)
    c1 = position.to(tl.uint32)
    c2 = rule.to(tl.uint32)
    c3 = _DRAW
    for _ in tl.static_range(_ROUNDS):
        high_0 = tl.umulhi(c0, _MULTIPLIER_0)
        high_1 = tl.umulhi(c2, _MULTIPLIER_1)
        low_0 = tl.mul(c0, _MULTIPLIER_0, sanitize_overflow=False)
        low_1 = tl.mul(c2, _MULTIPLIER_1, sanitize_overflow=False)
        c0 = high_1 ^ c1 ^ key_0
        c1 = low_1
        c2 = high_0 ^ c3 ^ key_1
        c3 = low_0
        key_0 = tl.add(key_0, _WEYL_0, sanitize_overflow=False)
        key_1 = tl.add(key_1, _WEYL_1, sanitize_overflow=False)
    return c0


@triton.jit
def gumbel(word):
    """float32 numbers as `negtemp_data.sampling.philox.gumbel` gives, within a few roundings."""
    # 2·word + 1 is exact, so this rounds as (word + ½)·2⁻³² in float64 and then to float32 does.
    u = tl.minimum((word.to(tl.int64) * 2 + 1).to(tl.float32) * _HALF_UNIT, _LARGEST_U)
    # ln(1 − u) with the rounding of 1 − u undone, since there is no log1p here.
    # Source: Goldberg, "What every computer scientist should know…" (1991), theorem 4.
    left = 1.0 - u
    is_rounded_away = left == 1.0
    ratio = tl.div_rn(u, tl.where(is_rounded_away, 1.0, 1.0 - left))
    log = tl.where(is_rounded_away, -u, tl.log(left) * ratio)
    return -tl.log(-log)


@triton.jit
def write_one_hot(
    logits_RV, row_stride, row_K, token_id_K, is_injected_K, width, SIZE: tl.constexpr
):
    """Makes the injected rows 0 at their token and −inf elsewhere; a program per row and part.

    Args:
        logits_RV: float32.
        row_stride: Logits from one row to the next.
        row_K: int64; an injected row is there once, others may be there again.
        token_id_K: int64.
        is_injected_K: bool; other rows are neither read nor written.
        width: V.
        SIZE: Logits of a part.
    """
    k = tl.program_id(0)
    if tl.load(is_injected_K + k):
        z_V = logits_RV + tl.load(row_K + k) * row_stride
        id_P = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        one_hot_P = tl.where(id_P == tl.load(token_id_K + k), 0.0, float("-inf"))
        tl.store(z_V + id_P, one_hot_P, mask=id_P < width)


@triton.jit
def rescale_rows(
    logits_RV,
    row_stride,
    row_K,
    width,
    is_wanted_K,
    mask_NV,
    mask_stride,
    vocabulary_K,
    min_p_K,
    epsilon_K,
    top_n_sigma_K,
    xtc_K,
    floor_K,
    temperature_K,
    log_min_p_K,
    peak_K,
    log_normalizer_K,
    deviation_K,
    top_KB,
    block_KB,
    n_blocks,
    is_changed_K,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Makes of rows what `negtemp_data.sampling.rescale` says, up to min_p on y, in place.

    Arguments are named as those of `draw_from_rows`, and after columns of `RescaleRequest`.
    `is_changed_K`, bool, False at first: whether the row holds y now.
    """
    k = tl.program_id(0)
    if tl.load(is_wanted_K + k):
        z_V = logits_RV + tl.load(row_K + k) * row_stride
        allowed_V = mask_NV + tl.load(vocabulary_K + k) * mask_stride
        block_B = block_KB + k * n_blocks
        lower, upper, n_found = _find_support(
            k,
            z_V,
            width,
            False,
            min_p_K=min_p_K,
            epsilon_K=epsilon_K,
            top_n_sigma_K=top_n_sigma_K,
            xtc_K=xtc_K,
            floor_K=floor_K,
            peak_K=peak_K,
            log_normalizer_K=log_normalizer_K,
            deviation_K=deviation_K,
            top_B=top_KB + k * n_blocks,
            block_B=block_B,
            n_blocks=n_blocks,
            BLOCKS=BLOCKS,
            PADDED=PADDED,
        )
        size, least, most = _survey(z_V, allowed_V, block_B, n_found, width, lower, upper, BLOCKS)
        temperature = tl.load(temperature_K + k)
        only = tl.full((), -1, tl.int64)
        if (size == 0) | (temperature == 0):
            lowest = tl.where(size == 0, _LOWEST, lower)
            highest = tl.where(size == 0, _HIGHEST, upper)
            only = _first_best(z_V, allowed_V, n_blocks, width, lowest, highest, BLOCKS)
        is_changed = (size > 0) | (only >= 0)
        tl.store(is_changed_K + k, is_changed)
        if is_changed:
            origin = tl.where(temperature < 0, least, most)
            log_min_p = tl.load(log_min_p_K + k)
            is_flat = tl.abs(temperature) == float("inf")
            divisor = tl.where(is_flat | (temperature == 0), 1.0, temperature)
            for first in range(0, n_blocks, BLOCKS):
                id_GL = _ids(first, BLOCKS)
                z_GL = tl.load(z_V + id_GL, mask=id_GL < width, other=float("-inf"))
                y_GL = tl.where(is_flat, 0.0, tl.div_rn(z_GL - origin, divisor))
                is_kept_GL = _is_member(allowed_V, id_GL, z_GL, lower, upper) & (y_GL >= log_min_p)
                y_GL = tl.where(is_kept_GL, y_GL, float("-inf"))
                y_GL = tl.where(only >= 0, tl.where(id_GL == only, 0.0, float("-inf")), y_GL)
                tl.store(z_V + id_GL, y_GL, mask=id_GL < width)


@triton.jit
def _first_best(z_V, allowed_V, n_blocks, width, lower, upper, BLOCKS: tl.constexpr):
    """The lowest id of the most likely of the allowed tokens within these bounds; −1: none."""
    best_GL = tl.full((BLOCKS, LANES), _NO_KEY, tl.int64)
    for first in range(0, n_blocks, BLOCKS):
        id_GL = _ids(first, BLOCKS)
        z_GL = tl.load(z_V + id_GL, mask=id_GL < width, other=float("-inf"))
        is_member_GL = _is_member(allowed_V, id_GL, z_GL, lower, upper)
        best_GL = tl.maximum(best_GL, tl.where(is_member_GL, _key(z_GL, id_GL), _NO_KEY))
    key = tl.max(best_GL)
    return tl.where(key > _NO_KEY, (key & _ID_BITS) ^ _ID_BITS, -1)


@triton.jit
def _ids(first, BLOCKS: tl.constexpr):
    """Ids of the logits of G blocks."""
    return (first + tl.arange(0, BLOCKS))[:, None] * LANES + tl.arange(0, LANES)[None, :]
