# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The draw of what is due, and the rows that it leaves, on a GPU.

A program takes a row (of `write_one_hot` a part of one) and says nothing to the host. Arguments are
pointers to contiguous tensors, but for `logits_RV`, whose rows may lie apart, and the numbers
`row_stride`, `width`, `mask_stride`, `n_blocks`, `n_slots`, `n_rules` and `n_kept`.
`draw_from_rows` is to be launched without fused multiply-adds, so that its operations round as they
do on the host.

Shapes: R batch rows, K rows looked at, V vocabulary, N vocabulary masks, B blocks of a row, G
blocks in hand, L = 128 logits of a block; S slots, M rules of the longest schedule, W kept states
of a slot, H registered rules, C columns.
"""

import triton
import triton.language as tl

from negtemp_data.sampling.triton_columns import (
    DEFER,
    EPSILON,
    GUARD,
    IS_DISTINCT,
    LAST,
    MIN_P,
    N_DEFERRED,
    N_INJECTED,
    NOMINAL,
    NUMBER_C,
    OUT_C,
    OUT_DISPLACED_ID,
    OUT_ENTROPY,
    OUT_IS_INJECTED,
    OUT_LOGPROB,
    OUT_POSITION,
    OUT_RANK,
    OUT_RULE,
    OUT_SLOT,
    OUT_SUPPORT_SIZE,
    OUT_TEMPERATURE,
    OUT_TOKEN_ID,
    OUT_VALUE_C,
    OWED,
    ROW_C,
    SEED,
    SIBLING,
    SIBLINGS_SEED,
    STATE_C,
    TEMPERATURE,
    TOP_N_SIGMA,
    VALUE_C,
    VOCABULARY,
    XTC,
)
from negtemp_data.sampling.triton_random import gumbel, philox
from negtemp_data.sampling.triton_scan import LANES
from negtemp_data.sampling.triton_settle import GROWING
from negtemp_data.sampling.triton_support import (
    ID_BITS,
    NO_KEY,
    count_reaching,
    find_support,
    is_member,
    key_of,
    load_blocks,
    score_of,
    survey,
)

_ANY_KEY = tl.constexpr(2**63 - 1)


@triton.jit(do_not_specialize=GROWING)
def draw_from_rows(
    logits_RV,
    row_stride,
    row_K,
    width,
    mask_NV,
    mask_stride,
    row_SC,
    state_WSMC,
    number_HC,
    value_HC,
    n_slots,
    n_rules,
    n_kept,
    known_K,
    floor_K,
    peak_K,
    argmax_K,
    log_normalizer_K,
    entropy_K,
    deviation_K,
    top_KB,
    block_KB,
    n_blocks,
    number_KC,
    value_KC,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_XTC: tl.constexpr,
):
    """Draws what is due. The semantics are those of `negtemp_data.sampling.draw`.

    Arguments are named after fields of `RowStates`, `RuleTable`, `RowStats` and `Outcome`, which
    `settle_rows` has begun to fill; so it has `known_K`. `floor_K`, float32, is a further lower
    bound of the support, or None; `block_KB`, int32, is memory for the blocks that reach the
    bound; `deviation_K` is None where no rule has a limit of that kind; PADDED is a power of two,
    at least B; HAS_XTC: some rule has such a limit.
    """
    k = tl.program_id(0)
    known = tl.load(known_K + k)
    if known > 0:
        z_V = logits_RV + tl.load(row_K + k) * row_stride
        out_C = number_KC + k * OUT_C
        slot = tl.load(out_C + OUT_SLOT)
        position = tl.load(out_C + OUT_POSITION)
        rule = tl.load(out_C + OUT_RULE)
        number_C = number_HC + known * NUMBER_C
        limit_C = value_HC + known * VALUE_C
        row_C = row_SC + slot * ROW_C
        allowed_V = mask_NV + tl.load(number_C + VOCABULARY) * mask_stride
        block_B = block_KB + k * n_blocks
        argmax = tl.load(argmax_K + k)
        log_normalizer = tl.load(log_normalizer_K + k)
        guard_V = mask_NV + tl.load(number_C + GUARD) * mask_stride
        n_sigma = tl.load(limit_C + TOP_N_SIGMA).to(tl.float32)
        xtc = tl.load(limit_C + XTC).to(tl.float32)
        lower, upper, n_found = find_support(
            k,
            z_V,
            width,
            tl.load(guard_V + argmax) != 0,
            min_p=tl.load(limit_C + MIN_P).to(tl.float32),
            epsilon=tl.load(limit_C + EPSILON).to(tl.float32),
            n_sigma=n_sigma if deviation_K is not None else None,
            xtc=xtc if HAS_XTC else None,
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
        if size >= 2:
            temperature = tl.load(limit_C + TEMPERATURE).to(tl.float32)
            origin = tl.where(temperature < 0, least, most)
            is_distinct = tl.load(number_C + IS_DISTINCT) != 0
            seed = tl.load(row_C + tl.where(is_distinct, SIBLINGS_SEED, SEED))
            order = tl.where(is_distinct, tl.load(row_C + SIBLING), 0)
            key = tl.full((), _ANY_KEY, tl.int64)
            # Each turn finds the best candidate behind the last one found.
            for _ in range(0, (order % size).to(tl.int32) + 1):
                best_GL = tl.full((BLOCKS, LANES), NO_KEY, tl.int64)
                for begin in range(0, n_found, BLOCKS):
                    id_GL, z_GL = load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
                    is_member_GL = is_member(allowed_V, id_GL, z_GL, lower, upper)
                    noise_GL = gumbel(philox(seed, id_GL, position, rule))
                    key_GL = key_of(score_of(z_GL, origin, temperature, noise_GL), id_GL)
                    is_open_GL = is_member_GL & (key_GL < key)
                    best_GL = tl.maximum(best_GL, tl.where(is_open_GL, key_GL, NO_KEY))
                key = tl.max(best_GL)
            token = (key & ID_BITS) ^ ID_BITS
            z_token = tl.load(z_V + token)
            rank = count_reaching(z_V, block_B, n_found, width, z_token, BLOCKS)
            tl.store(out_C + OUT_IS_INJECTED, 1)
            tl.store(out_C + OUT_TOKEN_ID, token)
            tl.store(out_C + OUT_DISPLACED_ID, argmax)
            tl.store(out_C + OUT_SUPPORT_SIZE, size.to(tl.int64))
            tl.store(out_C + OUT_RANK, rank.to(tl.int64))
            value_C = value_KC + k * OUT_VALUE_C
            tl.store(value_C + OUT_TEMPERATURE, temperature)
            tl.store(value_C + OUT_LOGPROB, z_token - log_normalizer)
            tl.store(value_C + OUT_ENTROPY, tl.load(entropy_K + k))
            there = ((position + 1) % n_kept * n_slots + slot) * n_rules + rule
            _note_injection(state_WSMC + there * STATE_C, position, tl.load(number_C + DEFER))


@triton.jit
def _note_injection(state_C, position, defer):
    """Makes of a rule's state, in which its injection has to wait, one in which it was made."""
    n_deferred = tl.load(state_C + N_DEFERRED)
    begins_to_wait = (tl.load(state_C + NOMINAL) == position) & (defer > 0)
    tl.store(state_C + N_DEFERRED, n_deferred - begins_to_wait.to(tl.int64))
    tl.store(state_C + OWED, tl.load(state_C + OWED) - 1)
    tl.store(state_C + N_INJECTED, tl.load(state_C + N_INJECTED) + 1)
    tl.store(state_C + LAST, position)
    tl.store(state_C + NOMINAL, position + 1)


@triton.jit
def write_one_hot(logits_RV, row_stride, row_K, number_KC, width, SIZE: tl.constexpr):
    """Makes the injected rows 0 at their token and −inf elsewhere; a program per row and part.

    Args:
        logits_RV: float32.
        row_stride: Logits from one row to the next.
        row_K: int64; an injected row is there once, others may be there again.
        number_KC: int64, columns `OutcomeNumber`; rows not injected are neither read nor written.
        width: V.
        SIZE: Logits of a part.
    """
    k = tl.program_id(0)
    out_C = number_KC + k * OUT_C
    if tl.load(out_C + OUT_IS_INJECTED) != 0:
        z_V = logits_RV + tl.load(row_K + k) * row_stride
        id_P = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        one_hot_P = tl.where(id_P == tl.load(out_C + OUT_TOKEN_ID), 0.0, float("-inf"))
        tl.store(z_V + id_P, one_hot_P, mask=id_P < width)
