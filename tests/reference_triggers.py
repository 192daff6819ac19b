"""When a rule of the sampling specification fires, one row and one position at a time.

Text rules read the bytes of the generated tokens from the beginning, every time.
"""

import math
import re
from collections.abc import Sequence

from negtemp_data.sampling import (
    BernoulliTrigger,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    PositionTrigger,
    Rule,
    TextTrigger,
)
from reference_noise import JITTER, RATE, WORD, random_word
from reference_supports import (
    ReferenceTokens,
    entropy,
    entropy_slack,
    finite_ids,
    is_broken,
    log_softmax,
)

MARGIN_SLACK = 1e-5
"""A lead this near to a bound may fall on either side of it in float32."""

WHITESPACE = b" \t\n\r"

# In bytes: a suffix of whole characters can't be mistaken for anything else in UTF-8.
_SENTENCE_END = re.compile("(?:[.!?]|…)(?:[\"')\\]*]|”|’|»)*\\Z".encode())
_WIDE_SENTENCE_END = re.compile("(?:。|！|？)(?:」|』|）|\"|'|”|’)*\\Z".encode())


def fires_at(seed: int, rule: Rule, index: int, position: int) -> bool:
    """Whether rule number `index`, whose trigger is positional, fires at `position`."""
    if position < rule.start or (rule.stop is not None and position >= rule.stop):
        return False
    match rule.trigger:
        case PeriodicTrigger(every, jitter):
            begin = rule.start + (position - rule.start) // every * every
            late = random_word(seed, 0, begin, index, JITTER) * (jitter + 1) // WORD
            return position == begin + late
        case BernoulliTrigger(rate):
            return random_word(seed, 0, position, index, RATE) / WORD < rate
        case PositionTrigger(positions):
            return position in positions
    raise TypeError(f"{rule.trigger} needs more than a position")


def may_fire(
    seed: int,
    rule: Rule,
    index: int,
    position: int,
    *,
    logits: Sequence[float],
    tokens_so_far: Sequence[int],
    tokens: ReferenceTokens,
) -> set[bool]:
    """Whether rule number `index` fires; both where float32 may decide otherwise than float64."""
    trigger = rule.trigger
    if not isinstance(trigger, EntropyTrigger | MarginTrigger | TextTrigger):
        return {fires_at(seed, rule, index, position)}
    if position < rule.start or (rule.stop is not None and position >= rule.stop):
        return {False}
    match trigger:
        case EntropyTrigger(above, below):
            if is_broken(logits):
                return {False}
            nats, slack = entropy(logits), entropy_slack(logits)
            is_above, is_below = _is_within(above, nats, slack), _is_within(nats, below, slack)
            return {either or other for either in is_above for other in is_below}
        case MarginTrigger(below):
            return {False} if is_broken(logits) else _leads_by_less(logits, below)
        case _:
            return {_has_just_ended(trigger, logits, tokens_so_far, tokens)}


def _is_within(low: float, high: float, slack: float) -> set[bool]:
    """Whether low < high."""
    if abs(high - low) <= slack:
        return {True, False}
    return {low < high}


def _leads_by_less(logits: Sequence[float], below: float) -> set[bool]:
    if len(finite_ids(logits)) == 1:
        return _is_within(1.0, below, MARGIN_SLACK)
    first, second = sorted(log_softmax(logits), reverse=True)[:2]
    if first == second:
        return {below > 0}
    return _is_within(math.exp(first) - math.exp(second), below, MARGIN_SLACK)


def _has_just_ended(
    trigger: TextTrigger,
    logits: Sequence[float],
    tokens_so_far: Sequence[int],
    tokens: ReferenceTokens,
) -> bool:
    if not tokens_so_far:
        return False
    *earlier, last = (tokens.texts[i] if i < len(tokens.texts) else b"" for i in tokens_so_far)
    before = b"".join(earlier)
    text = before + last
    match trigger.after:
        case "literal":
            return completes(trigger.literal.encode(), before, text)
        case "line":
            return completes(b"\n", before, text)
        case "word":
            return text[-1:] not in WHITESPACE and _goes_on_with_whitespace(logits, tokens)
        case "sentence":
            if _WIDE_SENTENCE_END.search(text):
                return True
            return bool(_SENTENCE_END.search(text)) and _goes_on_with_whitespace(logits, tokens)


def completes(literal: bytes, before: bytes, text: bytes) -> bool:
    """Whether an occurrence of `literal` in `text` ends beyond `before`, where `text` begins."""
    ends = range(len(before) + 1, len(text) + 1)
    return any(text[:end].endswith(literal) for end in ends)


def _goes_on_with_whitespace(logits: Sequence[float], tokens: ReferenceTokens) -> bool:
    """Whether the most likely token begins with whitespace."""
    if is_broken(logits):
        return False
    best = most_likely(logits)
    is_text = best < len(tokens.texts) and best not in tokens.special_ids
    return is_text and tokens.texts[best][:1] in {b" ", b"\t", b"\n", b"\r"}


def most_likely(logits: Sequence[float]) -> int:
    """Lowest id among the largest logits."""
    return list(logits).index(max(logits))
