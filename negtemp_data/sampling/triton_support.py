# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The support of a row on a GPU: its bounds, its candidates, and their order.

Only those blocks are read again whose largest logit reaches the lower bound: they alone hold the
candidates and every token that ranks before one.

Shapes: V vocabulary, B blocks of a row, G blocks in hand, L = 128 logits of a block.
"""

import triton
import triton.language as tl

from negtemp_data.sampling.triton_scan import LANES, LOWEST

NO_KEY = tl.constexpr(-(2**63))
"""Below every key of a token."""
ID_BITS = tl.constexpr(2**31 - 1)
"""Bits of a key that hold the token, inverted: the lowest id has the largest."""


@triton.jit
def find_support(
    k,
    z_V,
    width,
    is_barred,
    min_p,
    epsilon,
    n_sigma,
    xtc,
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
    """Bounds of the support, and how many blocks hold it, which are written down; barred: none.

    `n_sigma` and `xtc` are None where no row has such a limit.
    """
    peak = tl.load(peak_K + k)
    log_normalizer = tl.load(log_normalizer_K + k)
    lower = tl.maximum(peak + _log(min_p), log_normalizer + _log(epsilon))
    if floor_K is not None:
        lower = tl.maximum(lower, tl.load(floor_K + k))
    if n_sigma is not None:
        is_limited = n_sigma < float("inf")
        reach = tl.where(is_limited, n_sigma, 0.0) * tl.load(deviation_K + k)
        lower = tl.maximum(lower, tl.where(is_limited, peak - reach, float("-inf")))
    # Never −inf: that would let forbidden tokens in.
    lower = tl.maximum(lower, LOWEST)
    wanted = lower
    if xtc is not None:
        likely = tl.where(xtc > 0, log_normalizer + _log(xtc), float("inf"))
        wanted = tl.minimum(lower, likely)
    # No block reaches nan. A peak of nan is a row that has no meaning.
    wanted = tl.where((peak > float("-inf")) & (is_barred == 0), wanted, float("nan"))
    n_found = _find_blocks(top_B, block_B, n_blocks, wanted, PADDED)
    upper = float("inf")
    if xtc is not None:
        upper = _least_likely(z_V, block_B, n_found, width, likely, BLOCKS)
        upper = tl.where(xtc > 0, upper, float("inf"))
    return lower, upper, n_found


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
def load_blocks(z_V, block_B, begin, n_found, width, BLOCKS: tl.constexpr):
    """Ids and logits of the next blocks found; −inf where there are no more."""
    place_G = begin + tl.arange(0, BLOCKS)
    block_G = tl.load(block_B + place_G, mask=place_G < n_found, other=0)
    id_GL = block_G[:, None] * LANES + tl.arange(0, LANES)[None, :]
    is_there_GL = (place_G < n_found)[:, None] & (id_GL < width)
    return id_GL, tl.load(z_V + id_GL, mask=is_there_GL, other=float("-inf"))


@triton.jit
def is_member(allowed_V, id_GL, z_GL, lower, upper):
    """Whether logits lie within the bounds and their tokens are allowed."""
    is_within_GL = (z_GL >= lower) & (z_GL <= upper)
    return tl.load(allowed_V + id_GL, mask=is_within_GL, other=0) != 0


@triton.jit
def survey(z_V, allowed_V, block_B, n_found, width, lower, upper, BLOCKS: tl.constexpr):
    """How many candidates there are, and their least and largest logit."""
    count_GL = tl.full((BLOCKS, LANES), 0, tl.int32)
    least_GL = tl.full((BLOCKS, LANES), float("inf"), tl.float32)
    most_GL = tl.full((BLOCKS, LANES), float("-inf"), tl.float32)
    for begin in range(0, n_found, BLOCKS):
        id_GL, z_GL = load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
        is_member_GL = is_member(allowed_V, id_GL, z_GL, lower, upper)
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
        _, z_GL = load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
        is_above_GL = z_GL >= bound
        count_GL += is_above_GL.to(tl.int32)
        least_GL = tl.minimum(least_GL, tl.where(is_above_GL, z_GL, float("inf")))
    return tl.where(tl.sum(count_GL) < 2, float("-inf"), tl.min(least_GL))


@triton.jit
def count_reaching(z_V, block_B, n_found, width, bound, BLOCKS: tl.constexpr):
    """How many logits reach `bound`, if all of their blocks were found."""
    count_GL = tl.full((BLOCKS, LANES), 0, tl.int32)
    for begin in range(0, n_found, BLOCKS):
        _, z_GL = load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
        count_GL += (z_GL >= bound).to(tl.int32)
    return tl.sum(count_GL)


@triton.jit
def score_of(z, origin, temperature, noise):
    """(z − r)/T + g; T = 0 leaves out the noise, T = ±inf leaves nothing else."""
    difference = z - origin
    is_finite = (temperature != 0) & (tl.abs(temperature) < float("inf"))
    scaled = tl.div_rn(difference, tl.where(is_finite, temperature, 1.0))
    score = tl.where(is_finite, scaled, 0.0) + noise
    return tl.where(temperature == 0, difference, score)


@triton.jit
def key_of(score, token_id):
    """int64 that rises with the score, and among equal ones with falling ids."""
    # −0 is as large as 0, but has other bits.
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ ID_BITS, bits)
    return (rising.to(tl.int64) << 32) | (token_id ^ ID_BITS).to(tl.int64)


@triton.jit
def _log(x):
    return tl.where(x > 0, tl.log(tl.where(x > 0, x, 1.0)), float("-inf"))


@triton.jit
def block_ids(first, BLOCKS: tl.constexpr):
    """Ids of the logits of G blocks."""
    return (first + tl.arange(0, BLOCKS))[:, None] * LANES + tl.arange(0, LANES)[None, :]
