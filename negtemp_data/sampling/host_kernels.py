# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The kernels of a step on a CPU: loops that numba compiles, rows shared among torch's threads.

They do what the Triton kernels do, row by row. `inject_into_rows` settles which rule is due in a
row, reads the row once where that or a draw asks for it, draws from the blocks whose largest logit
reaches the lower bound of the support, and writes the row. `scan_rows` gives the statistics of
rows, `narrow_bounds` the supports that they do not tell, and `rescale_rows` makes of rows what
their bases ask for. What a row gives does not depend on the rows beside it.

Constants have types: one of Python's would turn a loop in float32 into one in float64, and words
of 64 bits without a sign into float64, too.

All of it is one file because numba keeps what it has compiled until this file changes, whatever
becomes of the others. What they define of random numbers never changes; where the columns of
matrices lie is written here again.

Shapes: F logits from the first of the batch to its last, R slots, K rows looked at, M rules of the
longest schedule, W kept states of a slot, G registered rules, A listed positions, X states of text
automata, V vocabulary, N vocabulary masks, B blocks of a row, S candidates of a row, L a few
logits, C columns of a matrix or classes of logits.
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
_DRAW, _RATE_WORDS, _JITTER_WORDS = map(np.uint64, (Stream.DRAW, Stream.RATE, Stream.JITTER))
_LARGEST_U = np.float32(1.0 - 2.0**-24)


# Columns, as `negtemp_data.sampling.columns` has them; a test compares.
_SEED, _SIBLINGS_SEED, _SIBLING, _REQUEST = range(4)
_START, _STOP, _EVERY, _JITTER, _RATE, _READS_STATS, _TEXT_STATE, _BURST = range(8)
_MAX_INJECTIONS, _COOLDOWN, _DEFER, _VOCABULARY, _GUARD, _IS_DISTINCT, _TOP_K = range(8, 15)
_TEMPERATURE, _ENTROPY_ABOVE, _ENTROPY_BELOW, _MARGIN_BELOW = range(4)
_MIN_P, _TOP_P, _TOP_N_SIGMA, _EPSILON, _XTC = range(4, 9)
_OWED, _NOMINAL, _LAST, _N_INJECTED, _N_DEFERRED, _TEXT = range(6)
_OUT_SLOT, _OUT_REQUEST, _OUT_POSITION, _OUT_IS_INJECTED, _OUT_IS_AGAIN = range(5)
_OUT_RULE, _OUT_TOKEN_ID, _OUT_DISPLACED_ID, _OUT_SUPPORT_SIZE, _OUT_RANK = range(5, 10)
_OUT_TEMPERATURE, _OUT_LOGPROB, _OUT_ENTROPY = range(3)
_LONG_AGO = np.int64(-(2**40))
_ALWAYS, _BEFORE_SPACE = 1, 2
"""Of `FireCode`."""


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
def _philox(seed, token_id, position, rule, stream):
    """The word that `negtemp_data.sampling.philox.philox` gives."""
    key_0, key_1 = np.uint64(seed) & _WORD, np.uint64(seed) >> _32
    c0, c1, c2, c3 = np.uint64(token_id), np.uint64(position), np.uint64(rule), stream
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
        noise = _gumbel(_philox(seed, token_S[place_S[n]], position, rule, _DRAW))
        score_S[n] = _score(z_S[place_S[n]] - origin, temperature, noise)
    drawn = place_S[_nth_best(score_S, order % size)]
    rank = 0
    for z in z_S:
        rank += z >= z_S[drawn]
    return size, token_S[drawn], rank


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


@njit(**_OPTIONS)
def _narrow(z_V, top_B, log_normalizer, top_p, top_k, xtc_floor, lower, upper):
    """The bounds of a support, narrowed by top_p, top_k and xtc."""
    # A lower bound of nan stays one.
    if top_p < 1:
        bound = _nucleus(z_V, top_B, _LOWEST, np.float64(log_normalizer), top_p)
        lower = bound if bound > lower else lower
    if top_k > 0:
        bound = _least_of_best(z_V, top_B, _LOWEST, 0.0, np.float64(top_k), True)
        lower = bound if bound > lower else lower
    if xtc_floor > -np.inf:
        upper = _least_above(z_V, top_B, xtc_floor)
    return lower, upper


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
        lower_K[k], upper_K[k] = _narrow(
            z_F[begin : begin + width],
            top_KB[k],
            log_normalizer_K[k],
            top_p_K[k],
            top_k_K[k],
            xtc_floor_K[k],
            lower_K[k],
            upper_K[k],
        )


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


@njit(**_OPTIONS)
def _read(z_V, top_B, has_deviation):
    """The statistics of a row, as float32 holds them."""
    argmax, peak, log_normalizer, entropy, margin, deviation = _scan_row(z_V, top_B, has_deviation)
    return (
        argmax,
        np.float32(peak),
        np.float32(log_normalizer),
        np.float32(entropy),
        np.float32(margin),
        np.float32(deviation),
    )


@njit(**_OPTIONS)
def _fires_by_position(number_C, at_A, seed, index, position):
    """Whether a rule fires here, from its start on; as `negtemp_data.sampling.firing` has it."""
    every = number_C[_EVERY]
    if every > 0:
        begin = position - (position - number_C[_START]) % every
        word = np.int64(_philox(seed, 0, begin, index, _JITTER_WORDS))
        if position == begin + (word * (number_C[_JITTER] + 1) >> 32):
            return True
    rate = number_C[_RATE]
    if rate > 0 and np.int64(_philox(seed, 0, position, index, _RATE_WORDS)) < rate:
        return True
    is_listed = False
    for at in at_A:
        is_listed |= at == position
    return is_listed


@njit(**_OPTIONS)
def _is_met(value_C, stats, is_before_space, begins_with_space_V):
    """Whether the logits fulfil what a rule waits for."""
    argmax, _, _, entropy, margin, _ = stats
    return (
        entropy > value_C[_ENTROPY_ABOVE]
        or entropy < value_C[_ENTROPY_BELOW]
        or margin < value_C[_MARGIN_BELOW]
        or (is_before_space and begins_with_space_V[argmax])
    )


@njit(**_OPTIONS)
def _n_left(state_C, number_C, position):
    """The most injections that a firing could owe here; 0 where one would be ignored."""
    is_in_burst = state_C[_OWED] > 0 and state_C[_NOMINAL] == position
    is_cool = position - state_C[_LAST] > number_C[_COOLDOWN]
    return number_C[_MAX_INJECTIONS] - state_C[_N_INJECTED] if is_cool and not is_in_burst else 0


@njit(**_OPTIONS)
def _settle(
    z_V,
    top_B,
    has_deviation,
    state_MC,
    rule_M,
    fires_M,
    last_token,
    place,
    number_GC,
    value_GC,
    at_GA,
    next_XV,
    code_X,
    begins_with_space_V,
):
    """Which rule is due in a row, or −1, and the row's statistics, if they were asked for.

    The rules' states move on to this position: its token is read, and what has waited too long is
    given up. `place` is (seed, position).
    """
    seed, position = place
    winner, has_stats = -1, False
    nothing = np.float32(0)
    stats = (np.int64(0), nothing, nothing, nothing, nothing, nothing)
    for m in range(len(rule_M)):
        rule = rule_M[m]
        if rule == 0:
            break
        number_C, state_C = number_GC[rule], state_MC[m]
        code = 0
        if state_C[_TEXT] >= 0 and position > 0:
            state_C[_TEXT] = next_XV[state_C[_TEXT], last_token]
            code = code_X[state_C[_TEXT]]
        if position > state_C[_NOMINAL] + number_C[_DEFER]:
            state_C[_OWED] = 0
        if winner >= 0:
            continue
        left = _n_left(state_C, number_C, position)
        if left > 0:
            is_in_range = number_C[_START] <= position < number_C[_STOP]
            fires = (
                fires_M[m]
                if len(fires_M)
                else is_in_range and _fires_by_position(number_C, at_GA[rule], seed, m, position)
            )
            is_before_space = code == _BEFORE_SPACE
            if is_in_range and not fires:
                fires = code == _ALWAYS
                if not fires and (number_C[_READS_STATS] or is_before_space):
                    if not has_stats:
                        stats, has_stats = _read(z_V, top_B, has_deviation), True
                    fires = _is_met(value_GC[rule], stats, is_before_space, begins_with_space_V)
            if fires:
                state_C[_OWED] = min(number_C[_BURST], left)
                state_C[_NOMINAL] = position
        if state_C[_OWED] > 0:
            winner = m
    return winner, has_stats, stats


@njit(**_OPTIONS)
def _bounds(z_V, top_B, stats, number_C, value_C):
    """Least and largest logit of a rule's support."""
    _, peak, log_normalizer, _, _, deviation = stats
    lower = peak + np.float32(np.log(value_C[_MIN_P]))
    lower = max(lower, log_normalizer + np.float32(np.log(value_C[_EPSILON])))
    # inf·0 is nan: a row of equal logits with no limit of this kind has none.
    if value_C[_TOP_N_SIGMA] < np.inf:
        lower = max(lower, peak - np.float32(value_C[_TOP_N_SIGMA]) * deviation)
    return _narrow(
        z_V,
        top_B,
        log_normalizer,
        value_C[_TOP_P],
        number_C[_TOP_K],
        log_normalizer + np.float32(np.log(value_C[_XTC])),
        lower,
        np.float32(np.inf),
    )


@njit(**_OPTIONS)
def _draw(z_V, top_B, stats, number_C, value_C, mask_NV, row_C, position, index):
    """How many candidates a rule finds, which one is drawn, and its rank; 0, −1, 0: none."""
    argmax, peak = stats[0], stats[1]
    # A peak of nan is a row that has no meaning.
    if np.isnan(peak) or mask_NV[number_C[_GUARD], argmax]:
        return 0, -1, 0
    lower, upper = _bounds(z_V, top_B, stats, number_C, value_C)
    is_distinct = number_C[_IS_DISTINCT] != 0
    seed = row_C[_SIBLINGS_SEED] if is_distinct else row_C[_SEED]
    return _draw_from_row(
        z_V,
        top_B,
        mask_NV[number_C[_VOCABULARY]],
        lower,
        upper,
        np.float32(value_C[_TEMPERATURE]),
        (seed, position, index),
        row_C[_SIBLING] if is_distinct else 0,
    )


@njit(**_OPTIONS)
def _recall(tag_W, position):
    """The place of the state before a position, and whether the position was computed before."""
    latest, is_again = 0, False
    for w in range(len(tag_W)):
        if tag_W[w] > position:
            is_again = True
        elif tag_W[w] > tag_W[latest] or tag_W[latest] > position:
            latest = w
    return latest, is_again


@njit(**_OPTIONS)
def _keep(tag_W, state_WMC, position, before_MC, after_MC):
    """Stores the states before a position and behind it, and forgets those of later ones."""
    for w in range(len(tag_W)):
        if tag_W[w] > position + 1:
            tag_W[w] = _LONG_AGO
    here, there = position % len(tag_W), (position + 1) % len(tag_W)
    tag_W[here], tag_W[there] = position, position + 1
    state_WMC[here], state_WMC[there] = before_MC, after_MC


@njit(
    "(f4[::1], i8, i8, b1, i8[::1], i8[::1], i8[::1], i8[::1], b1[:, ::1], i8[:, ::1], i8[:, ::1],"
    " i8[:, ::1], i8[:, :, :, ::1], i8[:, ::1], f8[:, ::1], i8[:, ::1], i4[:, ::1], i1[::1],"
    " b1[::1], b1[:, ::1], i8[:, ::1], f4[:, ::1], b1[::1])",
    parallel=True,
    **_OPTIONS,
)
def inject_into_rows(
    z_F,
    row_stride,
    width,
    has_deviation,
    row_K,
    slot_K,
    position_K,
    last_token_K,
    fires_KM,
    row_RC,
    rule_RM,
    tag_WR,
    state_WRMC,
    number_GC,
    value_GC,
    at_GA,
    next_XV,
    code_X,
    begins_with_space_V,
    mask_NV,
    number_KC,
    value_KC,
    is_waiting_K,
):
    """Does what rules ask for, in place. The semantics are those of `negtemp_data.sampling.draw`.

    Arguments are named after fields of `StepRows`, `RowStates`, `RuleTable`, `TextAutomata` and
    `Outcome`. `last_token_K` is empty where no rule reads text, `fires_KM` has no rules where it is
    to be worked out. `has_deviation`: some rule's support is made of deviations.
    """
    for k in prange(len(row_K)):
        slot, position = slot_K[k], position_K[k]
        number_KC[k] = 0
        is_waiting_K[k] = False
        if slot == 0:
            continue
        begin = row_K[k] * row_stride
        z_V = z_F[begin : begin + width]
        top_B = np.empty((width + BLOCK - 1) // BLOCK, np.float32)
        row_C, rule_M = row_RC[slot], rule_RM[slot]
        tag_W, state_WMC = tag_WR[:, slot], state_WRMC[:, slot]
        latest, is_again = _recall(tag_W, position)
        before_MC = state_WMC[latest].copy()
        state_MC = before_MC.copy()
        winner, has_stats, stats = _settle(
            z_V,
            top_B,
            has_deviation,
            state_MC,
            rule_M,
            fires_KM[k],
            last_token_K[k] if len(last_token_K) else 0,
            (row_C[_SEED], position),
            number_GC,
            value_GC,
            at_GA,
            next_XV,
            code_X,
            begins_with_space_V,
        )
        size = 0
        if winner >= 0:
            number_C, value_C, state_C = (
                number_GC[rule_M[winner]],
                value_GC[rule_M[winner]],
                state_MC[winner],
            )
            if not has_stats:
                stats = _read(z_V, top_B, has_deviation)
            size, token, rank = _draw(
                z_V, top_B, stats, number_C, value_C, mask_NV, row_C, position, winner
            )
            if size >= 2:
                argmax, _, log_normalizer, entropy, _, _ = stats
                number_KC[k, _OUT_RULE] = winner
                number_KC[k, _OUT_TOKEN_ID] = token
                number_KC[k, _OUT_DISPLACED_ID] = argmax
                number_KC[k, _OUT_SUPPORT_SIZE] = size
                number_KC[k, _OUT_RANK] = rank
                value_KC[k, _OUT_TEMPERATURE] = value_C[_TEMPERATURE]
                value_KC[k, _OUT_LOGPROB] = z_V[token] - log_normalizer
                value_KC[k, _OUT_ENTROPY] = entropy
                state_C[_OWED] -= 1
                state_C[_NOMINAL] = position + 1
                state_C[_LAST] = position
                state_C[_N_INJECTED] += 1
                z_V[:] = -np.inf
                z_V[token] = 0.0
            elif number_C[_DEFER] > 0 and state_C[_NOMINAL] == position:
                state_C[_N_DEFERRED] += 1
        number_KC[k, _OUT_SLOT] = slot
        number_KC[k, _OUT_REQUEST] = row_C[_REQUEST]
        number_KC[k, _OUT_POSITION] = position
        number_KC[k, _OUT_IS_INJECTED] = size >= 2
        number_KC[k, _OUT_IS_AGAIN] = is_again
        for m in range(len(state_MC)):
            is_waiting_K[k] |= state_MC[m, _OWED] > 0
        _keep(tag_W, state_WMC, position, before_MC, state_MC)


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
    nothing = np.empty(0, np.float32)
    stats = nothing, np.empty(0, np.int64), *(nothing,) * 4, np.empty((0, 0), np.float32)
    # numba's start sets the number of OpenMP threads of the thread that it happens on.
    thread = threading.Thread(target=scan_rows, args=(nothing, 0, 0, np.empty(0, np.int64), *stats))
    thread.start()
    thread.join()


_refuse_special_names()
_start_threads()
