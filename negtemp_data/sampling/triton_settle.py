# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Which rule is due in a row, on a GPU, and what its rules remember.

A program takes a row and says nothing to the host. Arguments are pointers to contiguous tensors,
but for the numbers `width`, `n_slots`, `n_rules`, `n_kept` and `n_listed`.

Shapes: K rows looked at, V vocabulary, S slots, M rules of the longest schedule, W kept states of a
slot, H registered rules, A listed positions, X states of text automata, C columns.
"""

import triton
import triton.language as tl

from negtemp_data.sampling.philox import Stream
from negtemp_data.sampling.state import LONG_AGO
from negtemp_data.sampling.text import FireCode
from negtemp_data.sampling.triton_columns import (
    BURST,
    COOLDOWN,
    DEFER,
    ENTROPY_ABOVE,
    ENTROPY_BELOW,
    EVERY,
    JITTER,
    LAST,
    MARGIN_BELOW,
    MAX_INJECTIONS,
    N_DEFERRED,
    N_INJECTED,
    NOMINAL,
    NUMBER_C,
    OUT_C,
    OUT_IS_AGAIN,
    OUT_IS_INJECTED,
    OUT_POSITION,
    OUT_REQUEST,
    OUT_RULE,
    OUT_SLOT,
    OWED,
    RATE,
    REQUEST,
    ROW_C,
    SEED,
    START,
    STATE_C,
    STOP,
    TEXT,
    VALUE_C,
)
from negtemp_data.sampling.triton_random import philox

_RATE_WORDS = tl.constexpr(int(Stream.RATE))
_JITTER_WORDS = tl.constexpr(int(Stream.JITTER))
_NEVER = tl.constexpr(-(2**63))
"""Before every tag."""
_LONG_AGO = tl.constexpr(LONG_AGO)
_ALWAYS = tl.constexpr(int(FireCode.ALWAYS))
_BEFORE_SPACE = tl.constexpr(int(FireCode.BEFORE_SPACE))

GROWING = ["n_slots", "n_rules", "n_listed"]
"""Numbers that grow while requests come in: a kernel must not be compiled anew for some of them."""


@triton.jit(do_not_specialize=GROWING)
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
    out_C = number_KC + k * OUT_C
    tl.store(out_C + OUT_SLOT, slot)
    tl.store(out_C + OUT_POSITION, position)
    tl.store(out_C + OUT_IS_INJECTED, 0)
    tl.store(out_C + OUT_IS_AGAIN, 0)
    tl.store(known_K + k, 0)
    if slot > 0:
        rule_M = tl.arange(0, PADDED)
        known_M = tl.load(rule_SM + slot * n_rules + rule_M, mask=rule_M < n_rules, other=0)
        is_rule_M = known_M > 0
        number_MC = number_HC + known_M * NUMBER_C
        latest, is_again = _recall(tag_WS + slot, n_slots, n_kept, position)
        slot_M = state_WSMC + (slot * n_rules + rule_M) * STATE_C
        before_MC = slot_M + latest * n_slots * n_rules * STATE_C
        owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M = _load_states(
            before_MC, is_rule_M
        )
        _remember(tag_WS + slot, n_slots, n_kept, position)
        here_MC = slot_M + (position % n_kept) * n_slots * n_rules * STATE_C
        _store_states(
            here_MC, is_rule_M, owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M
        )

        defer_M = tl.load(number_MC + DEFER)
        owed_M = tl.where(position > nominal_M + defer_M, 0, owed_M)
        start_M = tl.load(number_MC + START)
        is_in_range_M = (position >= start_M) & (position < tl.load(number_MC + STOP))
        if fires_KM is not None:
            fires_M = tl.load(fires_KM + k * n_rules + rule_M, mask=is_rule_M, other=0) != 0
        else:
            fires_M = is_in_range_M & _fires_by_position(
                tl.load(row_SC + slot * ROW_C + SEED),
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
            is_met_M |= _meets_limits(entropy, margin, value_HC + known_M * VALUE_C)

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
        there_MC = slot_M + ((position + 1) % n_kept) * n_slots * n_rules * STATE_C
        _store_states(
            there_MC, is_rule_M, owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M
        )
        tl.store(out_C + OUT_REQUEST, tl.load(row_SC + slot * ROW_C + REQUEST))
        tl.store(out_C + OUT_IS_AGAIN, is_again.to(tl.int64))
        tl.store(out_C + OUT_RULE, winner.to(tl.int64))
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
    left_M = tl.load(number_MC + MAX_INJECTIONS) - n_injected_M
    is_in_burst_M = (owed_M > 0) & (nominal_M == position)
    is_cool_M = position - last_M > tl.load(number_MC + COOLDOWN)
    starts_M = fires_M & is_rule_M & is_cool_M & (left_M > 0) & (is_in_burst_M == 0)
    winner = tl.min(tl.where(starts_M | (owed_M > 0), rule_M, PADDED), axis=0)
    # A firing behind the winner is lost.
    starts_M = starts_M & (rule_M <= winner)
    fired_M = tl.minimum(tl.load(number_MC + BURST), left_M)
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
    is_met_M = entropy > tl.load(value_MC + ENTROPY_ABOVE)
    is_met_M |= entropy < tl.load(value_MC + ENTROPY_BELOW)
    return is_met_M | (margin < tl.load(value_MC + MARGIN_BELOW))


@triton.jit
def _recall(tag_W, n_slots, n_kept, position):
    """The place of the state before a position, and whether the position was computed before."""
    latest = position * 0
    latest_tag = tl.full((), _NEVER, tl.int64)
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
    owed_M = tl.load(state_MC + OWED, mask=is_rule_M, other=0)
    nominal_M = tl.load(state_MC + NOMINAL, mask=is_rule_M, other=0)
    last_M = tl.load(state_MC + LAST, mask=is_rule_M, other=0)
    n_injected_M = tl.load(state_MC + N_INJECTED, mask=is_rule_M, other=0)
    n_deferred_M = tl.load(state_MC + N_DEFERRED, mask=is_rule_M, other=0)
    text_M = tl.load(state_MC + TEXT, mask=is_rule_M, other=-1)
    return owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M


@triton.jit
def _store_states(
    state_MC, is_rule_M, owed_M, nominal_M, last_M, n_injected_M, n_deferred_M, text_M
):
    tl.store(state_MC + OWED, owed_M, mask=is_rule_M)
    tl.store(state_MC + NOMINAL, nominal_M, mask=is_rule_M)
    tl.store(state_MC + LAST, last_M, mask=is_rule_M)
    tl.store(state_MC + N_INJECTED, n_injected_M, mask=is_rule_M)
    tl.store(state_MC + N_DEFERRED, n_deferred_M, mask=is_rule_M)
    tl.store(state_MC + TEXT, text_M, mask=is_rule_M)


@triton.jit
def _fires_by_position(seed, position, rule_M, number_MC, start_M, at_MA, n_listed):
    """Where rules fire, from their starts on; as `negtemp_data.sampling.firing` has it."""
    every_M = tl.load(number_MC + EVERY)
    # Of no meaning before the start, where a remainder may be negative.
    since_M = tl.maximum(position - start_M, 0)
    begin_M = position - since_M % tl.maximum(every_M, 1)
    zero_M = rule_M * 0
    word_M = philox(seed, zero_M, begin_M, rule_M, _JITTER_WORDS).to(tl.int64)
    shift_M = word_M * (tl.load(number_MC + JITTER) + 1) >> 32
    hits_M = (every_M > 0) & (position == begin_M + shift_M)
    here_M = begin_M * 0 + position
    word_M = philox(seed, zero_M, here_M, rule_M, _RATE_WORDS).to(tl.int64)
    hits_M = hits_M | (word_M < tl.load(number_MC + RATE))
    for a in range(0, n_listed):
        hits_M = hits_M | (tl.load(at_MA + a) == position)
    return hits_M
