# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels of a step: one program per row, and no word from them to the host.

`scan_rows` reads whole rows once. `settle_rows` says which rule is due in a row. `draw_from_rows`
reads again only the blocks of a row whose largest logit reaches the lower bound of the support, and
they alone hold the candidates and every token that ranks before one. `write_one_hot` writes the
injected rows. `rescale_rows` makes of rows what their bases ask for, but for limits that take
sorting.

All arguments up to the first constexpr are pointers to contiguous tensors, apart from
`logits_RV`, whose rows may lie apart, and the numbers `row_stride`, `width`, `mask_stride`,
`n_blocks`, `n_slots`, `n_rules`, `n_kept` and `n_listed`. `draw_from_rows` and `rescale_rows` are
to be launched without fused multiply-adds, so that their operations round as they do on the host.

Shapes: R batch rows, K rows looked at, V vocabulary, N vocabulary masks, B blocks of a row, G
blocks in hand, L = 128 logits of a block; S slots, M rules of the longest schedule, W kept states
of a slot, H registered rules, A listed positions, X states of text automata, C columns.
"""

import triton
import triton.language as tl

from negtemp_data.sampling.columns import (
    OutcomeNumber,
    OutcomeValue,
    RowNumber,
    RuleNumber,
    RuleValue,
    StateNumber,
)
from negtemp_data.sampling.philox import MULTIPLIERS, ROUNDS, WEYL, Stream
from negtemp_data.sampling.state import LONG_AGO
from negtemp_data.sampling.text import FireCode

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
_RATE_WORDS = tl.constexpr(int(Stream.RATE))
_JITTER_WORDS = tl.constexpr(int(Stream.JITTER))
_HALF_UNIT = tl.constexpr(2.0**-33)
_LARGEST_U = tl.constexpr(1.0 - 2.0**-24)

_NO_KEY = tl.constexpr(-(2**63))
_ANY_KEY = tl.constexpr(2**63 - 1)
_ID_BITS = tl.constexpr(2**31 - 1)

_LONG_AGO = tl.constexpr(LONG_AGO)
_ALWAYS = tl.constexpr(int(FireCode.ALWAYS))
_BEFORE_SPACE = tl.constexpr(int(FireCode.BEFORE_SPACE))

_ROW_C = tl.constexpr(len(RowNumber))
_SEED = tl.constexpr(int(RowNumber.SEED))
_SIBLINGS_SEED = tl.constexpr(int(RowNumber.SIBLINGS_SEED))
_SIBLING = tl.constexpr(int(RowNumber.SIBLING))
_REQUEST = tl.constexpr(int(RowNumber.REQUEST))

_NUMBER_C = tl.constexpr(len(RuleNumber))
_START = tl.constexpr(int(RuleNumber.START))
_STOP = tl.constexpr(int(RuleNumber.STOP))
_EVERY = tl.constexpr(int(RuleNumber.EVERY))
_JITTER = tl.constexpr(int(RuleNumber.JITTER))
_RATE = tl.constexpr(int(RuleNumber.RATE))
_BURST = tl.constexpr(int(RuleNumber.BURST))
_MAX_INJECTIONS = tl.constexpr(int(RuleNumber.MAX_INJECTIONS))
_COOLDOWN = tl.constexpr(int(RuleNumber.COOLDOWN))
_DEFER = tl.constexpr(int(RuleNumber.DEFER))
_VOCABULARY = tl.constexpr(int(RuleNumber.VOCABULARY))
_GUARD = tl.constexpr(int(RuleNumber.GUARD))
_IS_DISTINCT = tl.constexpr(int(RuleNumber.IS_DISTINCT))

_VALUE_C = tl.constexpr(len(RuleValue))
_TEMPERATURE = tl.constexpr(int(RuleValue.TEMPERATURE))
_ENTROPY_ABOVE = tl.constexpr(int(RuleValue.ENTROPY_ABOVE))
_ENTROPY_BELOW = tl.constexpr(int(RuleValue.ENTROPY_BELOW))
_MARGIN_BELOW = tl.constexpr(int(RuleValue.MARGIN_BELOW))
_MIN_P = tl.constexpr(int(RuleValue.MIN_P))
_TOP_N_SIGMA = tl.constexpr(int(RuleValue.TOP_N_SIGMA))
_EPSILON = tl.constexpr(int(RuleValue.EPSILON))
_XTC = tl.constexpr(int(RuleValue.XTC))

_STATE_C = tl.constexpr(len(StateNumber))
_OWED = tl.constexpr(int(StateNumber.OWED))
_NOMINAL = tl.constexpr(int(StateNumber.NOMINAL))
_LAST = tl.constexpr(int(StateNumber.LAST))
_N_INJECTED = tl.constexpr(int(StateNumber.N_INJECTED))
_N_DEFERRED = tl.constexpr(int(StateNumber.N_DEFERRED))
_TEXT = tl.constexpr(int(StateNumber.TEXT))

_OUT_C = tl.constexpr(len(OutcomeNumber))
_OUT_SLOT = tl.constexpr(int(OutcomeNumber.SLOT))
_OUT_REQUEST = tl.constexpr(int(OutcomeNumber.REQUEST))
_OUT_POSITION = tl.constexpr(int(OutcomeNumber.POSITION))
_OUT_IS_INJECTED = tl.constexpr(int(OutcomeNumber.IS_INJECTED))
_OUT_IS_AGAIN = tl.constexpr(int(OutcomeNumber.IS_AGAIN))
_OUT_RULE = tl.constexpr(int(OutcomeNumber.RULE))
_OUT_TOKEN_ID = tl.constexpr(int(OutcomeNumber.TOKEN_ID))
_OUT_DISPLACED_ID = tl.constexpr(int(OutcomeNumber.DISPLACED_ID))
_OUT_SUPPORT_SIZE = tl.constexpr(int(OutcomeNumber.SUPPORT_SIZE))
_OUT_RANK = tl.constexpr(int(OutcomeNumber.RANK))

_OUT_VALUE_C = tl.constexpr(len(OutcomeValue))
_OUT_TEMPERATURE = tl.constexpr(int(OutcomeValue.TEMPERATURE))
_OUT_LOGPROB = tl.constexpr(int(OutcomeValue.LOGPROB))
_OUT_ENTROPY = tl.constexpr(int(OutcomeValue.ENTROPY))

_GROWING = ["n_slots", "n_rules", "n_listed"]
"""Numbers that grow while requests come in: a kernel must not be compiled anew for some of them."""


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


@triton.jit(do_not_specialize=_GROWING)
def settle_rows(
    slot_K,
    position_K,
    last_token_K,
    fires_KM,
    argmax_K,
    entropy_K,
    margin_K,
    row_SC,
    rule_SM,
    tag_WS,
    state_WSMC,
    number_HC,
    value_HC,
    at_HA,
    next_XV,
    code_X,
    begins_with_space_V,
    width,
    n_slots,
    n_rules,
    n_kept,
    n_listed,
    known_K,
    number_KC,
    PADDED: tl.constexpr,
):
    """Says which rule is due in each row, and moves the states on as if its injection had to wait.

    Arguments are named after fields of `StepRows`, `RowStates`, `RuleTable`, `TextAutomata`,
    `RowStats` and `Outcome`. `known_K`, int64, is the registered rule that is due, 0 where none
    is. `last_token_K` is None where no rule reads text, `fires_KM` where it is to be worked out,
    `argmax_K` where no rule waits for something in the logits. PADDED is a power of two, at least
    M. One warp a program: threads of others would see the states change.
    """
    k = tl.program_id(0)
    slot = tl.load(slot_K + k)
    position = tl.load(position_K + k)
    out_C = number_KC + k * _OUT_C
    tl.store(out_C + _OUT_SLOT, slot)
    tl.store(out_C + _OUT_POSITION, position)
    tl.store(out_C + _OUT_IS_INJECTED, 0)
    tl.store(out_C + _OUT_IS_AGAIN, 0)
    tl.store(known_K + k, 0)
    if slot > 0:
        rule_M = tl.arange(0, PADDED)
        known_M = tl.load(rule_SM + slot * n_rules + rule_M, mask=rule_M < n_rules, other=0)
        is_rule_M = known_M > 0
        number_MC = number_HC + known_M * _NUMBER_C
        latest, is_again = _recall(tag_WS + slot, n_slots, n_kept, position)
        slot_M = state_WSMC + (slot * n_rules + rule_M) * _STATE_C
        before_MC = slot_M + latest * n_slots * n_rules * _STATE_C
        owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M = _load_states(
            before_MC, is_rule_M
        )
        _remember(tag_WS + slot, n_slots, n_kept, position)
        here_MC = slot_M + (position % n_kept) * n_slots * n_rules * _STATE_C
        _store_states(
            here_MC, is_rule_M, owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M
        )

        defer_M = tl.load(number_MC + _DEFER)
        owed_M = tl.where(position > nominal_M + defer_M, 0, owed_M)
        start_M = tl.load(number_MC + _START)
        is_in_range_M = (position >= start_M) & (position < tl.load(number_MC + _STOP))
        if fires_KM is not None:
            fires_M = tl.load(fires_KM + k * n_rules + rule_M, mask=is_rule_M, other=0) != 0
        else:
            fires_M = is_in_range_M & _fires_by_position(
                tl.load(row_SC + slot * _ROW_C + _SEED),
                position,
                rule_M,
                number_MC,
                start_M,
                at_HA + known_M * n_listed,
                n_listed,
            )
        is_met_M = rule_M < 0
        if last_token_K is not None:
            text_M, code_M = _read_token(
                tl.load(last_token_K + k), text_M, position, next_XV, code_X, width
            )
            is_met_M |= code_M == _ALWAYS
            if argmax_K is not None:
                begins = tl.load(begins_with_space_V + tl.load(argmax_K + k)) != 0
                is_met_M |= (code_M == _BEFORE_SPACE) & begins
        if argmax_K is not None:
            entropy, margin = tl.load(entropy_K + k), tl.load(margin_K + k)
            is_met_M |= _meets_limits(entropy, margin, value_HC + known_M * _VALUE_C)

        winner, owed_M, nominal_M = _take_firings(
            fires_M | (is_met_M & is_in_range_M),
            position,
            rule_M,
            is_rule_M,
            number_MC,
            owed_M,
            nominal_M,
            last_M,
            n_injected_M,
            PADDED,
        )
        is_winner_M = rule_M == winner
        begins_to_wait_M = is_winner_M & (defer_M > 0) & (nominal_M == position)
        n_deferred_M += begins_to_wait_M.to(tl.int64)
        there_MC = slot_M + ((position + 1) % n_kept) * n_slots * n_rules * _STATE_C
        _store_states(
            there_MC, is_rule_M, owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M
        )
        tl.store(out_C + _OUT_REQUEST, tl.load(row_SC + slot * _ROW_C + _REQUEST))
        tl.store(out_C + _OUT_IS_AGAIN, is_again.to(tl.int64))
        tl.store(out_C + _OUT_RULE, winner.to(tl.int64))
        tl.store(known_K + k, tl.sum(tl.where(is_winner_M, known_M, 0), axis=0))


@triton.jit
def _take_firings(
    fires_M,
    position,
    rule_M,
    is_rule_M,
    number_MC,
    owed_M,
    nominal_M,
    last_M,
    n_injected_M,
    PADDED: tl.constexpr,
):
    """Which rule is due, PADDED: none, and what rules owe then, and when."""
    left_M = tl.load(number_MC + _MAX_INJECTIONS) - n_injected_M
    is_in_burst_M = (owed_M > 0) & (nominal_M == position)
    is_cool_M = position - last_M > tl.load(number_MC + _COOLDOWN)
    starts_M = fires_M & is_rule_M & is_cool_M & (left_M > 0) & (is_in_burst_M == 0)
    winner = tl.min(tl.where(starts_M | (owed_M > 0), rule_M, PADDED), axis=0)
    # A firing behind the winner is lost.
    starts_M = starts_M & (rule_M <= winner)
    fired_M = tl.minimum(tl.load(number_MC + _BURST), left_M)
    return winner, tl.where(starts_M, fired_M, owed_M), tl.where(starts_M, position, nominal_M)


@triton.jit
def _read_token(token, text_M, position, next_XV, code_X, width):
    """The states of text automata behind a token, and their `FireCode`s."""
    reads_M = tl.where(position > 0, text_M, -1) >= 0
    next_M = tl.load(next_XV + text_M * width + token, mask=reads_M, other=0)
    text_M = tl.where(reads_M, next_M.to(tl.int64), text_M)
    return text_M, tl.load(code_X + text_M, mask=reads_M, other=0)


@triton.jit
def _meets_limits(entropy, margin, value_MC):
    """Whether entropy or margin are what rules wait for; nan never is."""
    is_met_M = entropy > tl.load(value_MC + _ENTROPY_ABOVE)
    is_met_M |= entropy < tl.load(value_MC + _ENTROPY_BELOW)
    return is_met_M | (margin < tl.load(value_MC + _MARGIN_BELOW))


@triton.jit
def _recall(tag_W, n_slots, n_kept, position):
    """The place of the state before a position, and whether the position was computed before."""
    latest = position * 0
    latest_tag = tl.full((), _NO_KEY, tl.int64)
    is_again = tl.full((), 0, tl.int1)
    for w in range(0, n_kept):
        tag = tl.load(tag_W + w * n_slots)
        is_later = tag > position
        is_better = (tag > latest_tag) & (is_later == 0)
        latest = tl.where(is_better, w, latest)
        latest_tag = tl.where(is_better, tag, latest_tag)
        is_again = is_again | is_later
    return latest, is_again


@triton.jit
def _remember(tag_W, n_slots, n_kept, position):
    """Tags the states before a position and behind it, and forgets those of later ones."""
    for w in range(0, n_kept):
        if tl.load(tag_W + w * n_slots) > position + 1:
            tl.store(tag_W + w * n_slots, _LONG_AGO)
    tl.store(tag_W + (position % n_kept) * n_slots, position)
    tl.store(tag_W + ((position + 1) % n_kept) * n_slots, position + 1)


@triton.jit
def _load_states(state_MC, is_rule_M):
    owed_M = tl.load(state_MC + _OWED, mask=is_rule_M, other=0)
    nominal_M = tl.load(state_MC + _NOMINAL, mask=is_rule_M, other=0)
    last_M = tl.load(state_MC + _LAST, mask=is_rule_M, other=0)
    n_injected_M = tl.load(state_MC + _N_INJECTED, mask=is_rule_M, other=0)
    n_deferred_M = tl.load(state_MC + _N_DEFERRED, mask=is_rule_M, other=0)
    text_M = tl.load(state_MC + _TEXT, mask=is_rule_M, other=-1)
    return owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M


@triton.jit
def _store_states(
    state_MC, is_rule_M, owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M
):
    tl.store(state_MC + _OWED, owed_M, mask=is_rule_M)
    tl.store(state_MC + _NOMINAL, nominal_M, mask=is_rule_M)
    tl.store(state_MC + _LAST, last_M, mask=is_rule_M)
    tl.store(state_MC + _N_INJECTED, n_injected_M, mask=is_rule_M)
    tl.store(state_MC + _N_DEFERRED, n_deferred_M, mask=is_rule_M)
    tl.store(state_MC + _TEXT, text_M, mask=is_rule_M)


@triton.jit
def _fires_by_position(seed, position, rule_M, number_MC, start_M, at_MA, n_listed):
    """Where rules fire, from their starts on; as `negtemp_data.sampling.firing` has it."""
    every_M = tl.load(number_MC + _EVERY)
    # Of no meaning before the start, where a remainder may be negative.
    since_M = tl.maximum(position - start_M, 0)
    begin_M = position - since_M % tl.maximum(every_M, 1)
    zero_M = rule_M * 0
    word_M = philox(seed, zero_M, begin_M, rule_M, _JITTER_WORDS).to(tl.int64)
    shift_M = word_M * (tl.load(number_MC + _JITTER) + 1) >> 32
    hits_M = (every_M > 0) & (position == begin_M + shift_M)
    here_M = begin_M * 0 + position
    word_M = philox(seed, zero_M, here_M, rule_M, _RATE_WORDS).to(tl.int64)
    hits_M = hits_M | (word_M < tl.load(number_MC + _RATE))
    for a in range(0, n_listed):
        hits_M = hits_M | (tl.load(at_MA + a) == position)
    return hits_M


@triton.jit(do_not_specialize=_GROWING)
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
        out_C = number_KC + k * _OUT_C
        slot = tl.load(out_C + _OUT_SLOT)
        position = tl.load(out_C + _OUT_POSITION)
        rule = tl.load(out_C + _OUT_RULE)
        number_C = number_HC + known * _NUMBER_C
        limit_C = value_HC + known * _VALUE_C
        row_C = row_SC + slot * _ROW_C
        allowed_V = mask_NV + tl.load(number_C + _VOCABULARY) * mask_stride
        block_B = block_KB + k * n_blocks
        argmax = tl.load(argmax_K + k)
        log_normalizer = tl.load(log_normalizer_K + k)
        guard_V = mask_NV + tl.load(number_C + _GUARD) * mask_stride
        n_sigma = tl.load(limit_C + _TOP_N_SIGMA).to(tl.float32)
        xtc = tl.load(limit_C + _XTC).to(tl.float32)
        lower, upper, n_found = _find_support(
            k,
            z_V,
            width,
            tl.load(guard_V + argmax) != 0,
            min_p=tl.load(limit_C + _MIN_P).to(tl.float32),
            epsilon=tl.load(limit_C + _EPSILON).to(tl.float32),
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
        size, least, most = _survey(z_V, allowed_V, block_B, n_found, width, lower, upper, BLOCKS)
        if size >= 2:
            temperature = tl.load(limit_C + _TEMPERATURE).to(tl.float32)
            origin = tl.where(temperature < 0, least, most)
            is_distinct = tl.load(number_C + _IS_DISTINCT) != 0
            seed = tl.load(row_C + tl.where(is_distinct, _SIBLINGS_SEED, _SEED))
            order = tl.where(is_distinct, tl.load(row_C + _SIBLING), 0)
            key = tl.full((), _ANY_KEY, tl.int64)
            # Each turn finds the best candidate behind the last one found.
            for _ in range(0, (order % size).to(tl.int32) + 1):
                best_GL = tl.full((BLOCKS, LANES), _NO_KEY, tl.int64)
                for begin in range(0, n_found, BLOCKS):
                    id_GL, z_GL = _load_blocks(z_V, block_B, begin, n_found, width, BLOCKS)
                    is_member_GL = _is_member(allowed_V, id_GL, z_GL, lower, upper)
                    noise_GL = gumbel(philox(seed, id_GL, position, rule))
                    key_GL = _key(_score(z_GL, origin, temperature, noise_GL), id_GL)
                    is_open_GL = is_member_GL & (key_GL < key)
                    best_GL = tl.maximum(best_GL, tl.where(is_open_GL, key_GL, _NO_KEY))
                key = tl.max(best_GL)
            token = (key & _ID_BITS) ^ _ID_BITS
            z_token = tl.load(z_V + token)
            rank = _count(z_V, block_B, n_found, width, z_token, BLOCKS)
            tl.store(out_C + _OUT_IS_INJECTED, 1)
            tl.store(out_C + _OUT_TOKEN_ID, token)
            tl.store(out_C + _OUT_DISPLACED_ID, argmax)
            tl.store(out_C + _OUT_SUPPORT_SIZE, size.to(tl.int64))
            tl.store(out_C + _OUT_RANK, rank.to(tl.int64))
            value_C = value_KC + k * _OUT_VALUE_C
            tl.store(value_C + _OUT_TEMPERATURE, temperature)
            tl.store(value_C + _OUT_LOGPROB, z_token - log_normalizer)
            tl.store(value_C + _OUT_ENTROPY, tl.load(entropy_K + k))
            there = ((position + 1) % n_kept * n_slots + slot) * n_rules + rule
            _note_injection(state_WSMC + there * _STATE_C, position, tl.load(number_C + _DEFER))


@triton.jit
def _note_injection(state_C, position, defer):
    """Makes of a rule's state, in which its injection has to wait, one in which it was made."""
    n_deferred = tl.load(state_C + _N_DEFERRED)
    begins_to_wait = (tl.load(state_C + _NOMINAL) == position) & (defer > 0)
    tl.store(state_C + _N_DEFERRED, n_deferred - begins_to_wait.to(tl.int64))
    tl.store(state_C + _OWED, tl.load(state_C + _OWED) - 1)
    tl.store(state_C + _N_INJECTED, tl.load(state_C + _N_INJECTED) + 1)
    tl.store(state_C + _LAST, position)
    tl.store(state_C + _NOMINAL, position + 1)


@triton.jit
def _find_support(
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
    lower = tl.maximum(lower, _LOWEST)
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
def philox(seed, token_id, position, rule, STREAM: tl.constexpr = _DRAW):
    """uint32 words, the same as `negtemp_data.sampling.philox.philox` gives."""
    key_0 = seed.to(tl.uint32)
    key_1 = (seed >> 32).to(tl.uint32)
    c0 = token_id.to(tl.uint32)
    c1 = position.to(tl.uint32)
    c2 = rule.to(tl.uint32)
    c3 = STREAM
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
    out_C = number_KC + k * _OUT_C
    if tl.load(out_C + _OUT_IS_INJECTED) != 0:
        z_V = logits_RV + tl.load(row_K + k) * row_stride
        id_P = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        one_hot_P = tl.where(id_P == tl.load(out_C + _OUT_TOKEN_ID), 0.0, float("-inf"))
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

    Arguments are named as those of `draw_from_rows`, and after columns of `RescaleRequest` and
    `Limits`; `top_n_sigma_K` and `xtc_K` are None where no row has such a limit.
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
