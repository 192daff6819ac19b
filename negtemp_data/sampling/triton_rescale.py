# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""What bases make of rows, on a GPU, but for limits that take sorting.

To be launched without fused multiply-adds, so that operations round as they do on the host.

Shapes: R batch rows, K rows with a base, V vocabulary, N vocabulary masks, B blocks of a row, G
blocks in hand, L = 128 logits of a block.
"""

import triton
import triton.language as tl

from negtemp_data.sampling.triton_scan import LANES, LOWEST
from negtemp_data.sampling.triton_support import (
    ID_BITS,
    NO_KEY,
    block_ids,
    find_support,
    is_member,
    key_of,
    survey,
)

_HIGHEST = tl.constexpr(3.4028234663852886e38)


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

    Arguments are named as those of `draw_from_rows`, and after columns of `RescaleRequest` and
    `Limits`; `top_n_sigma_K` and `xtc_K` are None where no row has such a limit.
    `is_changed_K`, bool, False at first: whether the row holds y now.
    """
    k = tl.program_id(0)
    if tl.load(is_wanted_K + k):
        z_V = logits_RV + tl.load(row_K + k) * row_stride
        allowed_V = mask_NV + tl.load(vocabulary_K + k) * mask_stride
        block_B = block_KB + k * n_blocks
        lower, upper, n_found = find_support(
            k,
            z_V,
            width,
            False,
            min_p=tl.load(min_p_K + k),
            epsilon=tl.load(epsilon_K + k),
            n_sigma=tl.load(top_n_sigma_K + k) if top_n_sigma_K is not None else None,
            xtc=tl.load(xtc_K + k) if xtc_K is not None else None,
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
        size, least, most = survey(z_V, allowed_V, block_B, n_found, width, lower, upper, BLOCKS)
        temperature = tl.load(temperature_K + k)
        only = tl.full((), -1, tl.int64)
        if (size == 0) | (temperature == 0):
            lowest = tl.where(size == 0, LOWEST, lower)
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
                id_GL = block_ids(first, BLOCKS)
                z_GL = tl.load(z_V + id_GL, mask=id_GL < width, other=float("-inf"))
                y_GL = tl.where(is_flat, 0.0, tl.div_rn(z_GL - origin, divisor))
                is_kept_GL = is_member(allowed_V, id_GL, z_GL, lower, upper) & (y_GL >= log_min_p)
                y_GL = tl.where(is_kept_GL, y_GL, float("-inf"))
                y_GL = tl.where(only >= 0, tl.where(id_GL == only, 0.0, float("-inf")), y_GL)
                tl.store(z_V + id_GL, y_GL, mask=id_GL < width)


@triton.jit
def _first_best(z_V, allowed_V, n_blocks, width, lower, upper, BLOCKS: tl.constexpr):
    """The lowest id of the most likely of the allowed tokens within these bounds; −1: none."""
    best_GL = tl.full((BLOCKS, LANES), NO_KEY, tl.int64)
    for first in range(0, n_blocks, BLOCKS):
        id_GL = block_ids(first, BLOCKS)
        z_GL = tl.load(z_V + id_GL, mask=id_GL < width, other=float("-inf"))
        is_member_GL = is_member(allowed_V, id_GL, z_GL, lower, upper)
        best_GL = tl.maximum(best_GL, tl.where(is_member_GL, key_of(z_GL, id_GL), NO_KEY))
    key = tl.max(best_GL)
    return tl.where(key > NO_KEY, (key & ID_BITS) ^ ID_BITS, -1)
