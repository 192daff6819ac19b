"""What a base makes of a row, in float64 and one token at a time.

Several rows may be right where float32 may decide otherwise than float64: `BaseRow.kept` names the
sets of tokens that may be left, and temperatures that follow from the entropy are intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from negtemp_data.sampling import (
    AnnealedTemperature,
    DynamicTemperature,
    EntropyTemperature,
    Piece,
)
from reference_supports import (
    RELATIVE_PROBABILITY,
    ReferenceTokens,
    TokenSet,
    candidates,
    entropy,
    entropy_slack,
    finite_ids,
    is_broken,
    nucleus,
    top_sets,
)

LOGIT_RELATIVE = 2e-6
"""Relative error of (z - r)/T in float32: three roundings, and that of T itself."""
LARGEST = 3e38
"""Beyond it a float32 is infinite: such a token may be left out, or kept."""
SMALLEST = 2e-38
"""A temperature nearer to 0 may be taken for this one; one that follows from the entropy, for 0."""


def piece_at(base: Sequence[Piece], position: int) -> Piece:
    """The first piece that ends after `position`."""
    return next(piece for piece in base if piece.until is None or position < piece.until)


@dataclass(frozen=True)
class BaseRow:
    """The row that a piece leaves."""

    kept: frozenset[TokenSet]
    """Sets of tokens that may be left."""
    colder: float
    """Temperature nearer to 0: the end of the interval."""
    hotter: float
    """Temperature further from 0."""
    logits: Sequence[float]
    """The row that the piece was given."""

    def difference(self, row: Sequence[float]) -> str | None:
        """What is wrong with a row of the product, if anything."""
        kept = frozenset(i for i, y in enumerate(row) if y != -math.inf)
        if kept not in self.kept:
            return f"kept {sorted(kept)}, not {[sorted(each) for each in self.kept]}"
        end = min if self.hotter < 0 else max
        best = end(self.logits[i] for i in kept)
        for i in kept:
            low, high = (
                scaled(self.logits[i] - best, temperature)
                for temperature in (self.colder, self.hotter)
            )
            slack = LOGIT_RELATIVE
            if not low * (1 + slack) <= row[i] <= high * (1 - slack):
                return f"token {i} has {row[i]}, not between {low} and {high}"
        return None


def scaled(difference: float, temperature: float) -> float:
    """(z - r)/T, which is never above 0; 0 at T = 0 where z is r itself."""
    if math.isinf(temperature):
        return 0.0
    if temperature == 0:
        return -math.inf if difference else 0.0
    return difference / temperature


def base_row(
    logits: Sequence[float], piece: Piece, position: int, tokens: ReferenceTokens
) -> BaseRow | None:
    """What `piece` makes of a row; None where it stays as it is."""
    allowed = tokens.allowed(piece.vocabulary, len(logits)).intersection(finite_ids(logits))
    if not allowed:
        return None
    best = frozenset([min(allowed, key=lambda i: (-logits[i], i))])
    if is_broken(logits):
        # No support and no entropy; whatever the temperature, one token is left.
        return BaseRow(frozenset({best}), 1.0, 1.0, logits)
    members = candidates(logits, piece.support).within(allowed).possible
    colder, hotter = _interval(piece, position, logits)
    kept = set[TokenSet]()
    for each in members:
        kept |= _truncated(logits, each or best, piece, colder, hotter)
    return BaseRow(frozenset(kept), colder, hotter, logits)


def temperature_at(piece: Piece, position: int, nats: float, n_finite: int) -> float:
    """T of a piece, for a row of this entropy and so many finite logits."""
    match piece.temperature:
        case AnnealedTemperature(first, last, over, shape):
            return _annealed(first, last, min(position / over, 1.0), shape)
        case EntropyTemperature(t0, n, theta):
            if nats == 0:
                return t0 * (0.0 if n < 1 else 1.0 if n == 1 else math.inf)
            exponent = theta / nats * math.log(n)
            return t0 * math.exp(exponent) if exponent < 700 else math.inf
        case DynamicTemperature(low, high, exponent):
            if n_finite == 1 or nats == 0:
                return low
            return low + (high - low) * (nats / math.log(n_finite)) ** exponent
        case constant:
            return constant


def _annealed(first: float, last: float, t: float, shape: str) -> float:
    match shape:
        case "linear":
            beta = (1 - t) / first + t / last
            return 1 / beta if beta else math.inf
        case "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * t)) / 2
        case _:
            return first * (last / first) ** t


def _interval(piece: Piece, position: int, logits: Sequence[float]) -> tuple[float, float]:
    """Temperatures that float32 may work out, the one nearest to 0 first."""
    if not isinstance(piece.temperature, EntropyTemperature | DynamicTemperature):
        exact = temperature_at(piece, position, 0.0, 1)
        return exact, exact if exact == 0 else math.copysign(max(abs(exact), SMALLEST), exact)
    nats, n_finite = entropy(logits), len(finite_ids(logits))
    error = 0.0 if n_finite == 1 else entropy_slack(logits)
    values = [
        temperature_at(piece, position, max(each, 0.0), n_finite)
        for each in (nats - error, nats + error)
    ]
    low, high = sorted(values, key=abs)
    if low * high < 0:
        raise ValueError("a temperature that may be on either side of 0 is no case for a test")
    return 0.0 if abs(low) < SMALLEST < abs(high) else low, high


def _truncated(
    logits: Sequence[float], members: TokenSet, piece: Piece, colder: float, hotter: float
) -> set[TokenSet]:
    """The sets that may be left of a support after min_p, top_k and top_p."""
    end = min if hotter < 0 else max
    origin = end(logits[i] for i in members)
    first = min(i for i in members if logits[i] == origin)
    if hotter == 0:
        return {frozenset([first])}
    # Ranks the tokens whatever the temperature; all are equal at an infinite one.
    order = {
        i: 0.0 if math.isinf(hotter) else math.copysign(1.0, hotter) * logits[i] for i in members
    }
    low = {i: scaled(logits[i] - origin, colder) for i in members}
    high = {i: scaled(logits[i] - origin, hotter) for i in members}
    found = set[TokenSet]()
    for after_min_p in _after_min_p(order, low, high, piece.min_p):
        for after_top_k in _after_top_k(order, low, high, after_min_p, piece.top_k):
            found |= _after_top_p(order, low, high, after_top_k, piece.top_p)
    finite = {kept for each in found for kept in _without_overflow(order, low, each)}
    return finite | ({frozenset([first])} if abs(colder) < SMALLEST else set())


Numbers = dict[int, float]


def _after_min_p(order: Numbers, low: Numbers, high: Numbers, min_p: float) -> list[TokenSet]:
    if min_p <= 0:
        return [frozenset(order)]
    bound = math.log(min_p)
    slack = RELATIVE_PROBABILITY
    return top_sets(
        order,
        lambda i: low[i] > bound + slack or high[i] == 0 == low[i],
        lambda i: high[i] >= bound - slack,
    )


def _after_top_k(
    order: Numbers, low: Numbers, high: Numbers, members: TokenSet, top_k: int
) -> list[TokenSet]:
    if top_k <= 0:
        return [members]
    kth = sorted(members, key=lambda i: -order[i])[min(top_k, len(members)) - 1]

    def ties(i: int) -> bool:
        # (z - r)/T may be one float32 for different z.
        return any(
            math.isclose(y[i], y[kth], rel_tol=LOGIT_RELATIVE, abs_tol=1e-37)
            or y[i] == y[kth] == -math.inf
            for y in (low, high)
        )

    ranked = {i: order[i] for i in members}
    return top_sets(
        ranked, lambda i: order[i] >= order[kth], lambda i: order[i] >= order[kth] or ties(i)
    )


def _after_top_p(
    order: Numbers, low: Numbers, high: Numbers, members: TokenSet, top_p: float
) -> set[TokenSet]:
    ranked = {i: order[i] for i in members}
    factor = math.exp(RELATIVE_PROBABILITY)
    # A sharper distribution needs fewer tokens for the same mass.
    narrow = nucleus(_normalized(low, members), ranked, top_p / factor if top_p < 1 else 1.0)
    wide = nucleus(_normalized(high, members), ranked, top_p * factor)
    return set(top_sets(ranked, lambda i: i in narrow, lambda i: i in narrow | wide))


def _normalized(y: Numbers, members: TokenSet) -> Numbers:
    total = math.log(math.fsum(math.exp(y[i]) for i in members))
    return {i: y[i] - total for i in members}


def _without_overflow(order: Numbers, low: Numbers, members: TokenSet) -> list[TokenSet]:
    ranked = {i: order[i] for i in members}
    return top_sets(ranked, lambda i: low[i] > -LARGEST, lambda _: True)
