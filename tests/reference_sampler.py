"""A slow reading of the sampling specification, one row and one token at a time.

Python integers, Python floats and sets; shares the frozen records with the product and nothing
else. Tests compare the product with it. Where float32 may decide otherwise than float64, the
reference says so itself: `Candidates.unsure` are tokens too near a limit to call, and
`ReferenceInjection.outcomes` holds every token whose score is too near the best.

Source: Philox4x32-10 and its known answers: Salmon et al., SC 2011, and Random123's kat_vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from negtemp_data.sampling import (
    Injection,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    TokenTable,
    Trace,
    Vocabulary,
)

WORD = 2**32
DRAW, RATE, JITTER = 0, 1, 2

RELATIVE_PROBABILITY = 1e-5
"""A token this near to a limit, as a ratio of probabilities, may fall on either side of it."""
LOGIT_ULPS = 4
"""So may one within this many float32 steps of the row's largest logit."""
SCORE_RELATIVE, SCORE_ABSOLUTE = 1e-6, 1e-5
"""Scores this near to the best may win in float32: each has three roundings and two logarithms."""


def philox_words(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """The four output words of Philox4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, WORD)
        high1, low1 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def random_word(seed: int, token_id: int, position: int, rule: int, stream: int) -> int:
    """First word for key = seed and counter = (token id, position, rule, stream)."""
    return philox_words((token_id, position, rule, stream), (seed % WORD, seed // WORD))[0]


def gumbel_number(word: int) -> float:
    """-ln(-ln(1 - u)), u = (word + ½)/2³² as the nearest float32, but at most 1 - 2⁻²⁴."""
    u = min(float(np.float32((word + 0.5) / WORD)), 1 - 2**-24)
    return -math.log(-math.log1p(-u))


def fires_at(seed: int, rule: Rule, index: int, position: int) -> bool:
    """Whether rule number `index` fires at `position`."""
    if position < rule.start or (rule.stop is not None and position >= rule.stop):
        return False
    if isinstance(rule.trigger, PeriodicTrigger):
        every, jitter = rule.trigger.every, rule.trigger.jitter
        begin = rule.start + (position - rule.start) // every * every
        late = random_word(seed, 0, begin, index, JITTER) * (jitter + 1) // WORD
        return position == begin + late
    return random_word(seed, 0, position, index, RATE) / WORD < rule.trigger.rate


def allowed_tokens(table: TokenTable, vocabulary: Vocabulary, width: int) -> set[int]:
    """Ids that `vocabulary` allows in logits of this width."""
    ids = set(range(min(len(table.tokens), width)))
    classes = {
        "special": ids & table.special_ids,
        "word_start": {i for i in ids if table.tokens[i][:1] in "Ġ▁ " and len(table.tokens[i]) > 1},
    }
    included = set[int]().union(*(classes[name] for name in vocabulary.include))
    excluded = set[int]().union(*(classes[name] for name in vocabulary.exclude))
    return (included if vocabulary.include else ids) - excluded


@dataclass(frozen=True)
class Candidates:
    """A support; `sure` and `unsure` do not overlap."""

    sure: set[int]
    """In the support, whatever the rounding."""
    unsure: set[int]
    """Too near a limit for float32."""
    exact: set[int]
    """The support in float64."""


def candidates(logits: Sequence[float], support: Support) -> Candidates:
    """The support of one row, from softmax(z) at T = 1. Empty for a row with a NaN or +inf."""
    z = [float(logit) for logit in logits]
    finite = [i for i, logit in enumerate(z) if math.isfinite(logit)]
    if not finite or any(math.isnan(logit) or logit == math.inf for logit in z):
        return Candidates(set(), set(), set())
    logprob = log_softmax(z)
    ulp = float(np.spacing(np.float32(max(abs(z[i]) for i in finite))))
    slack = RELATIVE_PROBABILITY + LOGIT_ULPS * ulp
    exact, wide, narrow = set(finite), set(finite), set(finite)
    for limit in _limits(z, finite, logprob, support):
        margin = RELATIVE_PROBABILITY * limit.scale + LOGIT_ULPS * ulp
        exact &= {i for i in finite if limit.distance[i] >= 0}
        wide &= {i for i in finite if limit.distance[i] >= -margin}
        narrow &= {i for i in finite if limit.distance[i] > margin}
    if support.top_k is not None:
        kept = _most_likely(z, finite, support.top_k)
        exact, wide, narrow = exact & kept, wide & kept, narrow & kept
    if support.top_p is not None:
        # Where a float32 step is worth more than a nat, only the peak has any mass.
        factor = math.exp(slack) if slack < 1 else 1.0
        exact &= _nucleus(z, finite, logprob, support.top_p)
        wide &= _nucleus(z, finite, logprob, support.top_p * factor)
        narrow &= _nucleus(z, finite, logprob, support.top_p / factor)
    peak = max(z[i] for i in finite)
    # Whatever the limit, relative ones always keep the peak.
    if support.epsilon is None:
        narrow |= {i for i in finite if z[i] == peak}
    return Candidates(sure=narrow, unsure=wide - narrow, exact=exact)


def log_softmax(logits: Sequence[float]) -> list[float]:
    """ln p of each token; -inf where forbidden."""
    peak = max(logits)
    normalizer = math.log(math.fsum(math.exp(logit - peak) for logit in logits))
    return [(logit - peak) - normalizer for logit in logits]


@dataclass(frozen=True)
class _Limit:
    distance: dict[int, float]
    """How far inside the limit each token is, in nats."""
    scale: float = 1.0
    """Size of the limit where that is less than a nat: a narrow row deserves a narrow margin."""


def _limits(
    z: list[float], finite: list[int], logprob: list[float], support: Support
) -> list[_Limit]:
    """Those limits that are bounds on a token's own probability or logit."""
    peak = max(z[i] for i in finite)
    limits = []
    if support.min_p is not None:
        limits.append(_Limit({i: z[i] - peak - _log(support.min_p) for i in finite}))
    if support.epsilon is not None:
        limits.append(_Limit({i: logprob[i] - _log(support.epsilon) for i in finite}))
    if support.top_n_sigma is not None:
        mean = math.fsum(z[i] for i in finite) / len(finite)
        variance = math.fsum((z[i] - mean) ** 2 for i in finite) / len(finite)
        reach = support.top_n_sigma * math.sqrt(variance)
        limits.append(_Limit({i: z[i] - peak + reach for i in finite}, min(reach, 1.0)))
    return limits


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _most_likely(z: list[float], finite: list[int], k: int) -> set[int]:
    ranked = sorted((z[i] for i in finite), reverse=True)
    return {i for i in finite if z[i] >= ranked[min(k, len(ranked)) - 1]}


def _nucleus(z: list[float], finite: list[int], logprob: list[float], top_p: float) -> set[int]:
    if top_p >= 1:
        return set(finite)
    mass, kept = 0.0, list[int]()
    for i in sorted(finite, key=lambda i: -z[i]):
        kept.append(i)
        mass += math.exp(logprob[i])
        if mass >= top_p:
            break
    return {i for i in finite if z[i] >= min(z[j] for j in kept)}


def scores(
    logits: Sequence[float], members: set[int], temperature: float, noise: dict[int, float]
) -> dict[int, float]:
    """(z - r)/T + g of each candidate; T = 0 leaves only the most likely in the race, unnoised."""
    peak = max(float(logits[i]) for i in members)
    if temperature == 0:
        return {i: 0.0 if logits[i] == peak else -math.inf for i in members}
    origin = min(float(logits[i]) for i in members) if temperature < 0 else peak
    return {i: (float(logits[i]) - origin) / temperature + noise[i] for i in members}


@dataclass(frozen=True)
class ReferenceInjection:
    """One injection."""

    outcomes: dict[int, Injection]
    """The record for each token that float32 may find best."""
    best: int
    """The one that float64 finds best."""


def inject(
    logits: Sequence[float],
    rule: Rule,
    *,
    index: int,
    allowed: set[int],
    seed: int,
    position: int,
) -> ReferenceInjection | None:
    """What `rule` draws from one row; None where it has fewer than two candidates."""
    members = candidates(logits, rule.support).exact & allowed
    if len(members) < 2:
        return None
    noise = {i: gumbel_number(random_word(seed, i, position, index, DRAW)) for i in members}
    score = scores(logits, members, rule.temperature, noise)
    best = min(members, key=lambda i: (-score[i], i))
    outcomes = {
        i: _record(
            logits,
            i,
            temperature=rule.temperature,
            support_size=len(members),
            position=position,
            rule=index,
        )
        for i in members
        if i == best or _may_win(score[i], score[best], rule.temperature)
    }
    return ReferenceInjection(outcomes, best)


def _may_win(score: float, best: float, temperature: float) -> bool:
    if temperature == 0:
        return False
    return best - score <= SCORE_RELATIVE * max(abs(score), abs(best)) + SCORE_ABSOLUTE


def _record(
    logits: Sequence[float],
    token: int,
    *,
    temperature: float,
    support_size: int,
    position: int,
    rule: int,
) -> Injection:
    z = [float(logit) for logit in logits]
    logprob = log_softmax(z)
    return Injection(
        position=position,
        token_id=token,
        displaced_id=z.index(max(z)),
        temperature=temperature,
        support_size=support_size,
        logprob=logprob[token],
        rank=sum(logit >= z[token] for logit in z),
        entropy=-math.fsum(math.exp(lp) * lp for lp in logprob if math.isfinite(lp)),
        rule=rule,
    )


@dataclass
class _RuleMemory:
    owed: int = 0
    """Injections that the firing under way still owes."""
    nominal: int = 0
    """Position at which the next of them is due."""
    last: int | None = None
    """Position of the rule's last injection."""
    count: int = 0


@dataclass
class ReferenceRow:
    """One request, step by step."""

    schedule: Schedule
    seed: int
    table: TokenTable
    injections: list[ReferenceInjection] = field(default_factory=list)
    deferred: int = 0

    def __post_init__(self) -> None:
        """Starts with rules that have done nothing."""
        self._memory = [_RuleMemory() for _ in self.schedule.rules]

    def step(self, position: int, logits: Sequence[float]) -> ReferenceInjection | None:
        """Does what the schedule does at `position`; positions only rise."""
        for rule, memory in zip(self.schedule.rules, self._memory, strict=True):
            if memory.owed and position > memory.nominal + rule.defer:
                memory.owed = 0
        for index, (rule, memory) in enumerate(zip(self.schedule.rules, self._memory, strict=True)):
            if self._starts(index, position):
                left = math.inf if rule.max_injections is None else rule.max_injections
                memory.owed = int(min(rule.burst, left - memory.count))
                memory.nominal = position
            if memory.owed:
                return self._carry_out(index, position, logits)
        return None

    def _starts(self, index: int, position: int) -> bool:
        rule, memory = self.schedule.rules[index], self._memory[index]
        if not fires_at(self.seed, rule, index, position):
            return False
        is_in_burst = memory.owed > 0 and memory.nominal == position
        is_cooling = memory.last is not None and position - memory.last <= rule.cooldown
        is_spent = rule.max_injections is not None and memory.count >= rule.max_injections
        return not (is_in_burst or is_cooling or is_spent)

    def _carry_out(
        self, index: int, position: int, logits: Sequence[float]
    ) -> ReferenceInjection | None:
        rule, memory = self.schedule.rules[index], self._memory[index]
        allowed = allowed_tokens(self.table, rule.vocabulary, len(logits))
        injection = inject(
            logits, rule, index=index, allowed=allowed, seed=self.seed, position=position
        )
        if injection is None:
            if position == memory.nominal and rule.defer > 0:
                self.deferred += 1
            return None
        memory.owed -= 1
        memory.nominal = position + 1
        memory.last = position
        memory.count += 1
        self.injections.append(injection)
        return injection


def differences(trace: Trace, expected: ReferenceRow, tolerance: float = 1e-4) -> list[str]:
    """What a product's trace has otherwise than the reference; empty where they agree.

    Args:
        trace: The product's.
        expected: The reference, having seen the same logits.
        tolerance: Allowed in log-probability and entropy, in nats.
    """
    found = []
    if trace.deferred != expected.deferred:
        found.append(f"deferred {trace.deferred}, not {expected.deferred}")
    ours = [injection.position for injection in trace.injections]
    theirs = [each.outcomes[each.best].position for each in expected.injections]
    if ours != theirs:
        return [*found, f"injected at {ours}, not {theirs}"]
    for injection, reference in zip(trace.injections, expected.injections, strict=True):
        outcome = reference.outcomes.get(injection.token_id)
        if outcome is None or not _is_close(injection, outcome, tolerance):
            found.append(f"{injection}, not {reference.outcomes[reference.best]}")
    return found


def _is_close(ours: Injection, theirs: Injection, tolerance: float) -> bool:
    inexact = {"temperature": 0.0, "logprob": 0.0, "entropy": 0.0}
    return (
        ours._replace(**inexact) == theirs._replace(**inexact)
        and math.isclose(ours.temperature, theirs.temperature, rel_tol=1e-6)
        and math.isclose(ours.logprob, theirs.logprob, rel_tol=1e-6, abs_tol=tolerance)
        and math.isclose(ours.entropy, theirs.entropy, rel_tol=1e-6, abs_tol=tolerance)
    )
