# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The kernels of a step on a CPU: loops that numba compiles, rows shared among torch's threads.

They do what the Triton kernels do, in one pass over a row: `scan_rows` reads whole rows once,
`draw_from_rows` reads again only the blocks of a row whose largest logit reaches the lower bound of
the support, and `write_one_hot` writes the injected rows. `narrow_bounds` finds the supports that
statistics do not give, and `rescale_rows` makes of rows what their bases ask for. What a row gives
does not depend on the rows beside it.

Constants have types: one of Python's would turn a loop in float32 into one in float64, and words
of 64 bits without a sign into float64, too.

All of it is one file because numba keeps what it has compiled until this file changes, whatever
becomes of the others: what they define here, random numbers, never does.

Shapes: F logits from the first of the batch to its last, K rows looked at, V vocabulary, N
vocabulary masks, B blocks of a row, S candidates of a row, L a few logits, C classes of logits.
"""

import math
import threading

import numba
import numpy as np
import torch
from llvmlite.binding import ffi
from numba import njit, prange
from numba.core.caching import FunctionCache

from negtemp_data.sampling.philox import MULTIPLIERS, ROUNDS, WEYL, WORD, Stream

BLOCK = 64
"""Logits of a block."""
_CHUNK = 16 * BLOCK
"""Logits of a row that are passed over twice, for their maxima and their sums, while in L1."""
_SHARE = 1 << 17
"""Logits that are a thread's worth: some 0.1 ms, while another thread, on cores that others use,
may take several milliseconds to come."""

_LOWEST = np.finfo(np.float32).min
"""Stands in for −inf where a difference is taken."""
_GONE = np.float32(-87.0)
"""About the least number whose exponential float32 holds with all its digits."""

# 2^r on [−½, ½] by the polynomial of the least relative error, 9e-8 where float32 holds 6e-8, among
# those that are 1 at 0: a row with one possible token has a mass of 1, and no entropy.
_EXP2 = tuple(np.float32(c) for c in (0.693147, 0.24022242, 0.055507336, 0.009671513, 0.0013264727))
_ONE = np.float32(1)
_C1, _C2, _C3, _C4, _C5 = _EXP2
_LOG2_E = np.float32(1 / math.log(2))
_ROUNDER = np.float32(1.5 * 2**23)

_CLASSES = 2048
_SHIFTS = (21, 10, 0)
"""Bits of a key below those that tell the classes of each turn: of 32, at most 11 at a time."""
_LIKELY = 16.0
"""In nats: tokens with less than e^−16 are left out as long as the others suffice."""

_MULTIPLIER_0, _MULTIPLIER_1 = map(np.uint64, MULTIPLIERS)
_WEYL_0, _WEYL_1 = map(np.uint64, WEYL)
_WORD = np.uint64(WORD)
_32 = np.uint64(32)
_DRAW = np.uint64(Stream.DRAW)
_LARGEST_U = np.float32(1.0 - 2.0**-24)


def _can_keep() -> bool:
    """Whether numba finds a folder, beside this file or of the user, for what it has compiled."""
    try:
        FunctionCache(_can_keep)
    except RuntimeError:
        return False
    return True


# Sums may be taken in any order, so that they go side by side; nan and ±inf keep their meaning.
_SUMS = {"reassoc", "contract", "nsz", "arcp"}
_OPTIONS = {"nogil": True, "cache": _can_keep(), "error_model": "numpy"}


@njit(fastmath={"contract"}, **_OPTIONS)
def _exp(x):
    """e^x in float32 for −87 <= x <= 0, within 2e-7 of its value near 0 and 4e-6 at −87."""
    # Added to 1.5·2²³, a number loses its fraction, and what is left are the sum's lowest bits.
    # Sums must stay as they are written for that.
    shifted = x * _LOG2_E + _ROUNDER
    r = x * _LOG2_E - (shifted - _ROUNDER)
    power = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _ONE
    exponent = np.int32(np.float32(shifted).view(np.int32) << np.int32(23))
    return np.int32(np.float32(power).view(np.int32) + exponent).view(np.float32)


@njit(fastmath=_SUMS, **_OPTIONS)
def _weigh(z_L, reference):
    """Σ exp(z − r) and Σ exp(z − r)·(z − r), r at least as large as each z."""
    # Two sums of each kind: one would wait for its own addition.
    mass_0 = mass_1 = moment_0 = moment_1 = np.float32(0)
    half = len(z_L) // 2
    for i in range(half):
        d = z_L[i] - reference
        d = _GONE if d < _GONE else d
        p = _exp(d)
        mass_0 += p
        moment_0 += p * d
        d = z_L[half + i] - reference
        d = _GONE if d < _GONE else d
        p = _exp(d)
        mass_1 += p
        moment_1 += p * d
    if len(z_L) % 2:
        d = z_L[-1] - reference
        d = _GONE if d < _GONE else d
        p = _exp(d)
        mass_0 += p
        moment_0 += p * d
    return np.float64(mass_0) + mass_1, np.float64(moment_0) + moment_1


@njit(fastmath=_SUMS, **_OPTIONS)
def _spread(z_L, pivot):
    """How many are finite, the sum of their distances from the pivot, and of their squares."""
    count = total = square = 0.0
    for i in range(len(z_L)):
        is_finite = z_L[i] > -np.inf
        off = np.float64(z_L[i]) - pivot if is_finite else 0.0
        count += 1.0 if is_finite else 0.0
        total += off
        square += off * off
    return count, total, square


@njit(**_OPTIONS)
def _flip(bits):
    """Bits of a float32 as an int32 that rises with it; and back."""
    return np.int32(bits ^ (np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(fastmath={"nnan", "nsz"}, **_OPTIONS)
def _largest(z_L):
    """The largest of a few logits; where one is a nan, any of them."""
    most = np.float32(-np.inf)
    for i in range(len(z_L)):
        most = z_L[i] if z_L[i] > most else most
    return most


@njit(**_OPTIONS)
def _two_largest(z_V, top_B):
    """The lowest id of the largest logit, that logit, and the second largest, perhaps as large."""
    peak = np.float32(-np.inf)
    for top in top_B:
        peak = max(peak, top)
    place, argmax, second = -1, -1, np.float32(-np.inf)
    for b in range(len(top_B)):
        if place < 0 and top_B[b] == peak:
            place = b
        else:
            second = max(second, top_B[b])
    for i in range(place * BLOCK, min((place + 1) * BLOCK, len(z_V))):
        if argmax < 0 and z_V[i] == peak:
            argmax = i
        else:
            second = max(second, z_V[i])
    # Among nan and −inf alone, there is none.
    return max(argmax, 0), peak, second


@njit(**_OPTIONS)
def _scan_row(z_V, top_B, has_deviation):
    """Argmax, peak, ln Σ exp(z), entropy, margin and deviation; nan where they mean nothing."""
    # With the reference r, which rises from chunk to chunk: Σ exp(z − r), Σ exp(z − r)·(z − r).
    reference, mass, moment = _LOWEST, 0.0, 0.0
    pivot, count, total, square = np.nan, 0.0, 0.0, 0.0
    for begin in range(0, len(z_V), _CHUNK):
        end = min(begin + _CHUNK, len(z_V))
        top = np.float32(-np.inf)
        for first in range(begin, end, BLOCK):
            largest = _largest(z_V[first : min(first + BLOCK, end)])
            top_B[first // BLOCK] = largest
            top = max(top, largest)
        if top > reference:
            shift = max(np.float64(reference) - top, -1e3)
            scale = math.exp(shift)
            mass, moment = scale * mass, scale * (moment + shift * mass)
            reference = top
        more_mass, more_moment = _weigh(z_V[begin:end], reference)
        mass += more_mass
        moment += more_moment
        if has_deviation and top > -np.inf:
            # One of the logits: however far out it lies, its squared distance from the mean is at
            # most n variances, so that float64 loses a few digits at worst.
            pivot = np.float64(top) if np.isnan(pivot) else pivot
            more_count, more_total, more_square = _spread(z_V[begin:end], pivot)
            count += more_count
            total += more_total
            square += more_square
    argmax, peak, second = _two_largest(z_V, top_B)
    # A nan or +inf has made the moment nan, whatever the bits of a nan did to its exponential.
    if not (peak > -np.inf and moment <= 0):
        return argmax, np.nan, np.nan, np.nan, np.nan, np.nan
    log_mass = math.log(mass)
    entropy = log_mass - moment / mass
    # All that forbidden tokens, e^−87 each, can add.
    entropy = entropy if entropy > 1e-30 else 0.0
    margin = (1.0 - math.exp(np.float64(second) - peak)) / mass
    variance = (square - total * total / count) / count if has_deviation else 0.0
    deviation = math.sqrt(max(variance, 0.0))
    return argmax, np.float64(peak), reference + log_mass, entropy, margin, deviation


@njit(
    "(f4[::1], i8, i8, i8[::1], f4[::1], i8[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[:, ::1])",
    parallel=True,
    **_OPTIONS,
)
def scan_rows(
    z_F,
    row_stride,
    width,
    row_K,
    peak_K,
    argmax_K,
    log_normalizer_K,
    entropy_K,
    margin_K,
    deviation_K,
    top_KB,
):
    """Fills the columns of `RowStats`; `deviation_K` is empty where none is wanted."""
    has_deviation = len(deviation_K) > 0
    for k in prange(len(row_K)):
        begin = row_K[k] * row_stride
        argmax, peak, log_normalizer, entropy, margin, deviation = _scan_row(
            z_F[begin : begin + width], top_KB[k], has_deviation
        )
        argmax_K[k] = argmax
        peak_K[k] = peak
        log_normalizer_K[k] = log_normalizer
        entropy_K[k] = entropy
        margin_K[k] = margin
        if has_deviation:
            deviation_K[k] = deviation


@njit(**_OPTIONS)
def _survey(z_V, top_B, allowed_V, lower, upper):
    """How many candidates there are, and their least and largest logit."""
    size, least, most = 0, np.float32(np.inf), np.float32(-np.inf)
    for b in range(len(top_B)):
        if top_B[b] >= lower:
            for i in range(b * BLOCK, min((b + 1) * BLOCK, len(z_V))):
                if lower <= z_V[i] <= upper and allowed_V[i]:
                    size += 1
                    least, most = min(least, z_V[i]), max(most, z_V[i])
    return size, least, most


@njit(**_OPTIONS)
def _philox(seed, token_id, position, rule):
    """The word that `negtemp_data.sampling.philox.philox` gives for a draw."""
    key_0, key_1 = np.uint64(seed) & _WORD, np.uint64(seed) >> _32
    c0, c1, c2, c3 = np.uint64(token_id), np.uint64(position), np.uint64(rule), _DRAW
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> _32) ^ c1 ^ key_0,
            product_1 & _WORD,
            (product_0 >> _32) ^ c3 ^ key_1,
            product_0 & _WORD,
        )
        key_0, key_1 = (key_0 + _WEYL_0) & _WORD, (key_1 + _WEYL_1) & _WORD
    return c0


@njit(**_OPTIONS)
def _gumbel(word):
    """As `negtemp_data.sampling.philox.gumbel`, within a rounding."""
    u = min(np.float32((np.float64(word) + 0.5) * 2.0**-32), _LARGEST_U)
    return np.float32(-math.log(-math.log1p(-np.float64(u))))


@njit(**_OPTIONS)
def _score(difference, temperature, noise):
    """(z − r)/T + g; T = 0 leaves out the noise, T = ±inf leaves nothing else."""
    if temperature == 0:
        return difference
    if np.isinf(temperature):
        return noise
    return difference / temperature + noise


@njit(**_OPTIONS)
def _nth_best(score_S, n_better):
    """The place of the score that `n_better` come before; of equals the first comes first."""
    best = -1
    for turn in range(n_better + 1):
        former, best = best, -1
        for s in range(len(score_S)):
            is_left = (
                turn == 0
                or score_S[s] < score_S[former]
                or (score_S[s] == score_S[former] and s > former)
            )
            if is_left and (best < 0 or score_S[s] > score_S[best]):
                best = s
    return best


@njit(**_OPTIONS)
def _gather(z_V, top_B, lower):
    """The tokens whose logits reach `lower`, by rising ids; those above the support with them."""
    n_blocks = 0
    for top in top_B:
        n_blocks += top >= lower
    token_S, z_S = np.empty(n_blocks * BLOCK, np.int64), np.empty(n_blocks * BLOCK, np.float32)
    s = 0
    for b in range(len(top_B)):
        if top_B[b] >= lower:
            for i in range(b * BLOCK, min((b + 1) * BLOCK, len(z_V))):
                if z_V[i] >= lower:
                    token_S[s], z_S[s] = i, z_V[i]
                    s += 1
    return token_S[:s], z_S[:s]


@njit(**_OPTIONS)
def _draw_from_row(z_V, top_B, allowed_V, lower, upper, temperature, counter, order):
    """How many candidates there are, which one is drawn, and its rank; 0, −1, 0: none."""
    # A bound of −inf must not let forbidden tokens in; one of nan lets nothing in.
    lower = _LOWEST if lower < _LOWEST else lower
    token_S, z_S = _gather(z_V, top_B, lower)
    place_S, size, least, most = np.empty_like(token_S), 0, np.float32(np.inf), np.float32(-np.inf)
    for s in range(len(z_S)):
        if z_S[s] <= upper and allowed_V[token_S[s]]:
            place_S[size] = s
            size += 1
            least, most = min(least, z_S[s]), max(most, z_S[s])
    if size == 0:
        return 0, -1, 0
    origin = least if temperature < 0 else most
    seed, position, rule = counter
    score_S = np.empty(size, np.float32)
    for n in range(size):
        noise = _gumbel(_philox(seed, token_S[place_S[n]], position, rule))
        score_S[n] = _score(z_S[place_S[n]] - origin, temperature, noise)
    drawn = place_S[_nth_best(score_S, order % size)]
    rank = 0
    for z in z_S:
        rank += z >= z_S[drawn]
    return size, token_S[drawn], rank


@njit(
    "(f4[::1], i8, i8, i8[::1], b1[:, ::1], i8[::1], i8[::1], f4[::1], f4[::1], f4[::1], i8[::1],"
    " i8[::1], i8[::1], i8[::1], f4[::1], i8[::1], f4[::1], f4[:, ::1], i8[::1], i8[::1], f4[::1],"
    " i8[::1])",
    parallel=True,
    **_OPTIONS,
)
def draw_from_rows(
    z_F,
    row_stride,
    width,
    row_K,
    mask_NV,
    vocabulary_K,
    guard_K,
    lower_K,
    upper_K,
    temperature_K,
    seed_K,
    position_K,
    rule_K,
    order_K,
    peak_K,
    argmax_K,
    log_normalizer_K,
    top_KB,
    token_id_K,
    support_size_K,
    logprob_K,
    rank_K,
):
    """Draws one token per row. The semantics are those of `negtemp_data.sampling.draw`.

    Arguments with the name of a column of `DrawRequest`, `Bounds`, `RowStats` or `Draw` are that
    column; `order_K` is empty where no row has one; `top_KB` is as `scan_rows` gives it.
    """
    for k in prange(len(row_K)):
        begin = row_K[k] * row_stride
        z_V, top_B = z_F[begin : begin + width], top_KB[k]
        size, token, rank = 0, -1, 0
        if not mask_NV[guard_K[k], argmax_K[k]]:
            size, token, rank = _draw_from_row(
                z_V,
                top_B,
                mask_NV[vocabulary_K[k]],
                lower_K[k],
                upper_K[k],
                temperature_K[k],
                (seed_K[k], position_K[k], rule_K[k]),
                order_K[k] if len(order_K) else 0,
            )
        z_token = z_V[token] if size else peak_K[k]
        token_id_K[k] = token if size else argmax_K[k]
        support_size_K[k] = size
        logprob_K[k] = z_token - log_normalizer_K[k]
        rank_K[k] = rank


@njit(**_OPTIONS)
def _key(z):
    """An integer from 0 to 2³² − 1 that rises with the logit."""
    return np.int64(_flip(np.float32(z).view(np.int32))) + np.int64(2**31)


@njit(**_OPTIONS)
def _logit(key):
    """The logit with this key."""
    return np.int32(_flip(np.int32(key - np.int64(2**31)))).view(np.float32)


@njit(**_OPTIONS)
def _weight(z, log_normalizer, is_count):
    return 1.0 if is_count else math.exp(np.float64(z) - log_normalizer)


@njit(**_OPTIONS)
def _least_of_best(z_V, top_B, floor, log_normalizer, target, is_count):
    """The least of the most likely logits, not below `floor`, that reach `target` together.

    Each counts for one, or with its probability. −inf where all together do not reach it. Instead
    of sorting, the logits are put into classes by the highest bits of their keys, and those of the
    class in which the target is reached by the next bits, three times.
    """
    weight_C = np.empty(_CLASSES)
    # The keys in question, and the weight of all that lies above them.
    low, high, above = np.int64(0), np.int64(2**32), 0.0
    for shift in _SHIFTS:
        weight_C[:] = 0
        for b in range(len(top_B)):
            if top_B[b] >= floor and _key(top_B[b]) >= low:
                for i in range(b * BLOCK, min((b + 1) * BLOCK, len(z_V))):
                    key = _key(z_V[i])
                    if z_V[i] >= floor and low <= key < high:
                        weight_C[(key - low) >> shift] += _weight(z_V[i], log_normalizer, is_count)
        chosen = -1
        for c in range(_CLASSES - 1, -1, -1):
            if weight_C[c] > 0:
                chosen = c
                if above + weight_C[c] >= target:
                    break
                above += weight_C[c]
        else:
            # Within a class, sums taken in another order may miss the target by a rounding.
            if low == 0:
                return np.float32(-np.inf)
        low += np.int64(chosen) << shift
        high = low + (np.int64(1) << shift)
    return _logit(low)


@njit(**_OPTIONS)
def _nucleus(z_V, top_B, floor, log_normalizer, top_p):
    """Least logit of the smallest set with probability `top_p`; −inf where all of them are it."""
    likely = max(floor, np.float32(log_normalizer - _LIKELY))
    bound = _least_of_best(z_V, top_B, likely, log_normalizer, top_p, False)
    if bound == -np.inf:
        bound = _least_of_best(z_V, top_B, floor, log_normalizer, top_p, False)
    return bound


@njit(**_OPTIONS)
def _least_above(z_V, top_B, floor):
    """The least logit that reaches `floor`; −inf where fewer than two do."""
    count, least = 0, np.float32(np.inf)
    for b in range(len(top_B)):
        if top_B[b] >= floor:
            for i in range(b * BLOCK, min((b + 1) * BLOCK, len(z_V))):
                if z_V[i] >= floor:
                    count += 1
                    least = min(least, z_V[i])
    return least if count >= 2 else np.float32(-np.inf)


@njit(
    "(f4[::1], i8, i8, i8[::1], f4[:, ::1], f4[::1], f8[::1], i8[::1], f4[::1], f4[::1], f4[::1])",
    parallel=True,
    **_OPTIONS,
)
def narrow_bounds(
    z_F,
    row_stride,
    width,
    row_K,
    top_KB,
    log_normalizer_K,
    top_p_K,
    top_k_K,
    xtc_floor_K,
    lower_K,
    upper_K,
):
    """Narrows the supports by top_p, top_k and xtc, in place.

    `xtc_floor_K` is the least logit that xtc counts as likely, −inf where a row has no xtc.
    """
    for k in prange(len(row_K)):
        begin = row_K[k] * row_stride
        z_V, top_B = z_F[begin : begin + width], top_KB[k]
        # A lower bound of nan stays one.
        if top_p_K[k] < 1:
            bound = _nucleus(z_V, top_B, _LOWEST, np.float64(log_normalizer_K[k]), top_p_K[k])
            lower_K[k] = bound if bound > lower_K[k] else lower_K[k]
        if top_k_K[k] > 0:
            bound = _least_of_best(z_V, top_B, _LOWEST, 0.0, np.float64(top_k_K[k]), True)
            lower_K[k] = bound if bound > lower_K[k] else lower_K[k]
        if xtc_floor_K[k] > -np.inf:
            upper_K[k] = _least_above(z_V, top_B, xtc_floor_K[k])


@njit(**_OPTIONS)
def _first_best(z_V, allowed_V, lower, upper):
    """The lowest id of the most likely of the allowed tokens within these bounds; −1: none."""
    best = -1
    for i in range(len(z_V)):
        if allowed_V[i] and lower <= z_V[i] <= upper and (best < 0 or z_V[i] > z_V[best]):
            best = i
    return best


@njit(**_OPTIONS)
def _scale(z_V, allowed_V, lower, upper, origin, temperature, log_min_p):
    """y = (z − r)/T on the support where it reaches ln(min_p), −inf elsewhere."""
    is_flat = np.isinf(temperature)
    for i in range(len(z_V)):
        y = (z_V[i] - origin) / temperature
        # An overflowing difference over an infinite temperature would be nan.
        y = np.float32(0) if is_flat else y
        is_kept = (lower <= z_V[i]) & (z_V[i] <= upper) & allowed_V[i] & (y >= log_min_p)
        z_V[i] = y if is_kept else np.float32(-np.inf)


@njit(**_OPTIONS)
def _truncate(y_V, top_k, top_p):
    """top_k, then top_p on what it leaves; y <= 0."""
    top_B = np.empty((len(y_V) + BLOCK - 1) // BLOCK, np.float32)
    for b in range(len(top_B)):
        top_B[b] = _largest(y_V[b * BLOCK : min((b + 1) * BLOCK, len(y_V))])
    floor = _LOWEST
    if top_k > 0:
        floor = max(floor, _least_of_best(y_V, top_B, floor, 0.0, np.float64(top_k), True))
    if top_p < 1:
        mass = 0.0
        for b in range(len(top_B)):
            if top_B[b] >= floor:
                for i in range(b * BLOCK, min((b + 1) * BLOCK, len(y_V))):
                    mass += math.exp(np.float64(y_V[i])) if y_V[i] >= floor else 0.0
        floor = max(floor, _nucleus(y_V, top_B, floor, math.log(mass), top_p))
    for i in range(len(y_V)):
        y_V[i] = y_V[i] if y_V[i] >= floor else np.float32(-np.inf)


@njit(**_OPTIONS)
def _rescale_row(z_V, top_B, allowed_V, lower, upper, temperature, log_min_p, top_k, top_p):
    """What `negtemp_data.sampling.rescale` says, for a row."""
    # A bound of −inf must not let forbidden tokens in; one of nan lets nothing in.
    lower = _LOWEST if lower < _LOWEST else lower
    size, least, most = _survey(z_V, top_B, allowed_V, lower, upper)
    only = -1
    if size == 0:
        only = _first_best(z_V, allowed_V, _LOWEST, -_LOWEST)
        if only < 0:
            return
    elif temperature == 0:
        only = _first_best(z_V, allowed_V, lower, upper)
    if only >= 0:
        z_V[:] = -np.inf
        z_V[only] = 0.0
        return
    origin = least if temperature < 0 else most
    _scale(z_V, allowed_V, lower, upper, origin, temperature, log_min_p)
    if top_k > 0 or top_p < 1:
        _truncate(z_V, top_k, top_p)


@njit(
    "(f4[::1], i8, i8, i8[::1], b1[::1], b1[:, ::1], i8[::1], f4[::1], f4[::1], f4[::1], f4[::1],"
    " i8[::1], f8[::1], f4[:, ::1])",
    parallel=True,
    **_OPTIONS,
)
def rescale_rows(
    z_F,
    row_stride,
    width,
    row_K,
    is_wanted_K,
    mask_NV,
    vocabulary_K,
    lower_K,
    upper_K,
    temperature_K,
    log_min_p_K,
    top_k_K,
    top_p_K,
    top_KB,
):
    """Makes of rows what their bases ask for, in place.

    Arguments with the name of a column of `RescaleRequest`, `Bounds` or `RowStats` are that column.
    """
    for k in prange(len(row_K)):
        if is_wanted_K[k]:
            begin = row_K[k] * row_stride
            _rescale_row(
                z_F[begin : begin + width],
                top_KB[k],
                mask_NV[vocabulary_K[k]],
                lower_K[k],
                upper_K[k],
                temperature_K[k],
                log_min_p_K[k],
                top_k_K[k],
                top_p_K[k],
            )


@njit("(f4[::1], i8, i8, i8[::1], i8[::1], b1[::1])", parallel=True, **_OPTIONS)
def write_one_hot(z_F, row_stride, width, row_K, token_id_K, is_injected_K):
    """Makes the injected rows 0 at their token and −inf elsewhere."""
    for k in prange(len(row_K)):
        if is_injected_K[k]:
            z_V = z_F[row_K[k] * row_stride :][:width]
            z_V[:] = -np.inf
            z_V[token_id_K[k]] = 0.0


def _refuse_special_names() -> None:
    """Lets llvmlite's library answer as an object does that has no `__dict__`.

    It answers any name with a function; vLLM asks all objects of all modules for their `__dict__`
    when an engine starts on a CPU, and would take that function for one.
    """
    answer = ffi._lib_wrapper.__getattr__

    def answer_others(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(self, name)

    ffi._lib_wrapper.__getattr__ = answer_others


def use_threads(n_logits: int) -> None:
    """Lets the kernels have the threads of torch's operations, so far as the logits are many."""
    most = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(max(1, min(most, n_logits // _SHARE)))


def _start_threads() -> None:
    # Those of torch's own OpenMP, where they can be had; of two pools, one would wait while the
    # other spins.
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    nothing = np.empty(0, np.int64)
    arguments = np.empty(0, np.float32), 0, 0, nothing, nothing, np.empty(0, np.bool_)
    # numba's start sets the number of OpenMP threads of the thread that it happens on.
    thread = threading.Thread(target=write_one_hot, args=arguments)
    thread.start()
    thread.join()


_refuse_special_names()
_start_threads()
