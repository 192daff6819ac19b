"""Candidate sets of the sampling specification, one row and one token at a time.

Where float32 may find other sets than float64, `supports` names them all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from negtemp_data.sampling import Support, TokenTable, Vocabulary

RELATIVE_PROBABILITY = 1e-5
"""A token this near to a limit, as a ratio of probabilities, may fall on either side of it."""
LOGIT_ULPS = 4
"""So may one within this many float32 steps of the row's largest logit."""
LARGEST_UNSHIFTED = 64.0
"""Sums over logits larger than this have to be taken relative to the largest."""

TokenSet = frozenset[int]


@dataclass(frozen=True)
class ReferenceTokens:
    """The tokens of a model, with their classes spelled out."""

    texts: tuple[bytes, ...]
    special_ids: TokenSet
    classes: Mapping[str, TokenSet]
    """Classes besides `special`; those that the product can't work out from the texts alone."""
    eos_ids: TokenSet = frozenset()

    def table(self) -> TokenTable:
        """The same for the product."""
        return TokenTable(
            texts=self.texts,
            special_ids=self.special_ids,
            eos_ids=self.eos_ids,
            more=self.classes.get,
        )

    def members(self, name: str, width: int) -> set[int]:
        """Ids of a class in logits of this width."""
        known = {**self.classes, "special": self.special_ids}
        return set(known[name]) & set(range(min(len(self.texts), width)))

    def allowed(self, vocabulary: Vocabulary, width: int) -> set[int]:
        """Ids that `vocabulary` allows in logits of this width."""
        ids = set(range(min(len(self.texts), width)))
        if vocabulary.include:
            ids = set[int]().union(*(self.members(name, width) for name in vocabulary.include))
        return ids.difference(*(self.members(name, width) for name in vocabulary.exclude))


def is_broken(logits: Sequence[float]) -> bool:
    """Whether softmax has no meaning: a nan, a +inf, or no finite logit."""
    return not all(logit < math.inf for logit in logits) or max(logits) == -math.inf


def finite_ids(logits: Sequence[float]) -> list[int]:
    """Tokens that are not forbidden."""
    return [i for i, logit in enumerate(logits) if math.isfinite(logit)]


def log_softmax(logits: Sequence[float]) -> list[float]:
    """ln p of each token; -inf where forbidden."""
    peak = max(logits)
    normalizer = math.log(math.fsum(math.exp(logit - peak) for logit in logits))
    return [(logit - peak) - normalizer for logit in logits]


def logit_slack(logits: Sequence[float]) -> float:
    """Error of ln Σ exp(z) in float32, and so of what is compared with it, in nats."""
    largest = max(abs(logits[i]) for i in finite_ids(logits))
    return LOGIT_ULPS * float(np.spacing(np.float32(largest)))


def entropy_slack(logits: Sequence[float]) -> float:
    """Error of the entropy in float32, in nats: of ln Σ exp(z) - Σ p·z, which are logits."""
    largest = max(abs(logits[i]) for i in finite_ids(logits))
    step = float(np.spacing(np.float32(min(largest, LARGEST_UNSHIFTED))))
    return 1e-6 + LOGIT_ULPS * step


def entropy(logits: Sequence[float]) -> float:
    """Entropy of softmax(z) in nats."""
    logprobs = [logprob for logprob in log_softmax(logits) if math.isfinite(logprob)]
    return -math.fsum(math.exp(logprob) * logprob for logprob in logprobs)


def top_sets(
    order: Mapping[int, float],
    surely_in: Callable[[int], bool],
    maybe_in: Callable[[int], bool],
) -> list[TokenSet]:
    """The sets of highest tokens between those that are surely in and those that may be.

    Args:
        order: What ranks the tokens; ties stay together.
        surely_in: Whether a token reaches the limit whatever the rounding.
        maybe_in: Whether it may.
    """
    narrow = frozenset(i for i in order if surely_in(i))
    steps = {order[i] for i in order if maybe_in(i) and i not in narrow}
    wider = [frozenset(i for i in order if order[i] >= step or i in narrow) for step in steps]
    return [*wider, narrow]


def nucleus(logprob: Mapping[int, float], order: Mapping[int, float], top_p: float) -> TokenSet:
    """Smallest set of tokens, highest in `order` first, with this mass; ties of the last kept."""
    if top_p >= 1:
        return frozenset(order)
    mass, last = 0.0, math.inf
    for i in sorted(order, key=lambda i: -order[i]):
        last = order[i]
        mass += math.exp(logprob[i])
        if mass >= top_p:
            break
    return frozenset(i for i in order if order[i] >= last)


@dataclass(frozen=True)
class Candidates:
    """A support."""

    exact: TokenSet
    """In float64."""
    possible: frozenset[TokenSet]
    """All that float32 may find."""

    def within(self, allowed: set[int]) -> "Candidates":
        """Those that a vocabulary allows."""
        return Candidates(self.exact & allowed, frozenset(each & allowed for each in self.possible))


NOTHING = Candidates(frozenset(), frozenset({frozenset()}))


def candidates(logits: Sequence[float], support: Support) -> Candidates:
    """The support of one row, from softmax(z) at T = 1. Empty for a row with a nan or +inf."""
    if is_broken(logits):
        return NOTHING
    found = _certain(frozenset(finite_ids(logits)))
    for limit in _limits(logits, support):
        found = Candidates(
            found.exact & limit.exact,
            frozenset(left & right for left in found.possible for right in limit.possible),
        )
    return found


def _limits(logits: Sequence[float], support: Support) -> list[Candidates]:
    """Each limit on its own."""
    z = {i: float(logits[i]) for i in finite_ids(logits)}
    peak = max(z.values())
    logprobs = log_softmax(logits)
    logprob = {i: logprobs[i] for i in z}
    ulps = logit_slack(logits)
    limits = []
    if support.min_p is not None:
        bound = peak + math.log(support.min_p)
        limits.append(_at_least(z, z, bound, RELATIVE_PROBABILITY + ulps, keeps_peak=True))
    if support.epsilon is not None:
        bound = math.log(support.epsilon)
        limits.append(_at_least(z, logprob, bound, RELATIVE_PROBABILITY + ulps))
    if support.top_n_sigma is not None:
        reach = support.top_n_sigma * _deviation(list(z.values()))
        # A narrow row deserves a narrow tolerance.
        slack = RELATIVE_PROBABILITY * min(reach, 1.0) + ulps
        limits.append(_at_least(z, z, peak - reach, slack, keeps_peak=True))
    if support.top_k is not None:
        kth = sorted(z.values(), reverse=True)[min(support.top_k, len(z)) - 1]
        limits.append(_certain(frozenset(i for i in z if z[i] >= kth)))
    if support.top_p is not None:
        limits.append(_nucleus_limit(z, logprob, support.top_p, RELATIVE_PROBABILITY + ulps))
    if support.xtc is not None:
        bound = math.log(support.xtc)
        above = _at_least(z, logprob, bound, RELATIVE_PROBABILITY + ulps)
        limits.append(
            Candidates(
                _all_but_the_top(z, above.exact),
                frozenset(_all_but_the_top(z, each) for each in above.possible),
            )
        )
    return limits


def _certain(tokens: TokenSet) -> Candidates:
    return Candidates(tokens, frozenset({tokens}))


def _at_least(
    order: dict[int, float],
    value: dict[int, float],
    bound: float,
    slack: float,
    *,
    keeps_peak: bool = False,
) -> Candidates:
    """Tokens whose value reaches a bound."""
    peak = max(order.values()) if keeps_peak else math.inf
    return Candidates(
        frozenset(i for i in value if value[i] >= bound),
        frozenset(
            top_sets(
                order,
                lambda i: value[i] > bound + slack or order[i] == peak,
                lambda i: value[i] >= bound - slack,
            )
        ),
    )


def _nucleus_limit(
    z: dict[int, float], logprob: dict[int, float], top_p: float, slack: float
) -> Candidates:
    # Where a float32 step is worth more than a nat, only the peak has any mass.
    factor = math.exp(slack) if slack < 1 else 1.0
    narrow = nucleus(logprob, z, top_p / factor)
    # A limit of 1 is no limit; one just below it may be none in float32.
    wide = nucleus(logprob, z, top_p * factor)
    return Candidates(
        nucleus(logprob, z, top_p),
        frozenset(top_sets(z, lambda i: i in narrow, lambda i: i in wide)),
    )


def _all_but_the_top(z: dict[int, float], above: TokenSet) -> TokenSet:
    """XTC: of the tokens above the threshold only the least likely stays, and all below it."""
    if len(above) < 2:
        return frozenset()
    last = min(z[i] for i in above)
    return frozenset(i for i in z if z[i] <= last)


def _deviation(values: list[float]) -> float:
    """Of the population."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
