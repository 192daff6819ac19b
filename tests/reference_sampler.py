"""A slow reading of the sampling specification, one row and one token at a time.

Python integers, Python floats and sets; shares the frozen records with the product and nothing
else. Tests compare the product with it. Where float32 may decide otherwise than float64, the
reference says so itself: `ReferenceInjection.outcomes` holds every record that may be right, and
`ReferenceRow.is_sure` tells whether the row's history can be known at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from negtemp_data.sampling import Injection, Rule, Schedule, Siblings, Trace
from reference_base import BaseRow, base_row, piece_at
from reference_noise import DRAW, gumbel_number, random_word
from reference_supports import (
    NOTHING,
    Candidates,
    ReferenceTokens,
    TokenSet,
    candidates,
    entropy,
    entropy_slack,
    log_softmax,
    logit_slack,
)
from reference_triggers import may_fire, most_likely

SCORE_RELATIVE, SCORE_ABSOLUTE = 1e-6, 1e-5
"""Scores this near to each other may change places in float32: each has three roundings and two
logarithms."""
NATS_RELATIVE, NATS_ABSOLUTE = 1e-6, 2e-6
"""Error of a record's log-probability and entropy, besides what the row's own logits add."""

# --- the draw


def scores(
    logits: Sequence[float], members: TokenSet, temperature: float, noise: dict[int, float]
) -> dict[int, float]:
    """(z - r)/T + g of each candidate; at T = 0 the logit itself ranks them, unnoised."""
    if temperature == 0:
        return {i: float(logits[i]) for i in members}
    end = min if temperature < 0 else max
    origin = end(float(logits[i]) for i in members)
    return {i: (float(logits[i]) - origin) / temperature + noise[i] for i in members}


def possible_tokens(score: dict[int, float], place: int, *, is_exact: bool) -> set[int]:
    """Tokens that may have this place, 0 for the best, in descending score."""

    def gap(i: int, j: int) -> float:
        slack = SCORE_RELATIVE * max(abs(score[i]), abs(score[j])) + SCORE_ABSOLUTE
        return 0.0 if abs(score[j] - score[i]) <= slack else score[j] - score[i]

    if is_exact:
        return {sorted(score, key=lambda i: (-score[i], i))[place]}
    found = set[int]()
    for i in score:
        gaps = [gap(i, j) for j in score if j != i]
        if sum(each > 0 for each in gaps) <= place <= sum(each >= 0 for each in gaps):
            found.add(i)
    return found


@dataclass(frozen=True)
class ReferenceInjection:
    """One injection."""

    outcomes: dict[tuple[int, int], Injection]
    """The records that may be right, by token and size of the support."""
    best: Injection
    """The one that float64 finds."""
    logprob_slack: float
    """Error of the log-probability, in nats, besides that of any number of its size."""
    entropy_slack: float
    """That of the entropy."""

    @property
    def tokens(self) -> set[int]:
        """Tokens that may be drawn."""
        return {token for token, _ in self.outcomes}


def rule_candidates(logits: Sequence[float], rule: Rule, tokens: ReferenceTokens) -> Candidates:
    """What `rule` may draw from; nothing where the most likely token is guarded."""
    guarded = set[int]().union(*(tokens.members(name, len(logits)) for name in rule.guard))
    found = candidates(logits, rule.support)
    if found != NOTHING and most_likely(logits) in guarded:
        return NOTHING
    return found.within(tokens.allowed(rule.vocabulary, len(logits)))


def inject(
    logits: Sequence[float],
    rule: Rule,
    found: Candidates,
    *,
    index: int,
    seed: int,
    position: int,
    siblings: Siblings | None = None,
) -> ReferenceInjection | None:
    """What `rule` draws from `found`; None where it has fewer than two candidates."""
    if len(found.exact) < 2:
        return None
    key, sibling = seed, 0
    if rule.is_distinct:
        if siblings is None:
            raise ValueError("a distinct draw needs siblings")
        key, sibling = siblings.seed, siblings.index
    noise = {
        i: gumbel_number(random_word(key, i, position, index, DRAW))
        for i in frozenset().union(*found.possible)
    }

    def records(members: TokenSet, *, is_exact: bool) -> list[Injection]:
        score = scores(logits, members, rule.temperature, noise)
        winners = possible_tokens(
            score, sibling % len(members), is_exact=is_exact or rule.temperature == 0
        )
        return [
            _record(logits, i, rule.temperature, len(members), position, index) for i in winners
        ]

    possible = [each for each in found.possible if len(each) >= 2]
    outcomes = [record for each in possible for record in records(each, is_exact=False)]
    (best,) = records(found.exact, is_exact=True)
    return ReferenceInjection(
        outcomes={(record.token_id, record.support_size): record for record in outcomes},
        best=best,
        # Where a float32 step is larger than ln V, ln Σ exp(z) can't be told from the peak.
        logprob_slack=min(logit_slack(logits), math.log(len(logits))),
        entropy_slack=entropy_slack(logits),
    )


def _record(
    logits: Sequence[float],
    token: int,
    temperature: float,
    support_size: int,
    position: int,
    rule: int,
) -> Injection:
    return Injection(
        position=position,
        token_id=token,
        displaced_id=most_likely(logits),
        temperature=temperature,
        support_size=support_size,
        logprob=log_softmax(logits)[token],
        rank=sum(logit >= logits[token] for logit in logits),
        entropy=entropy(logits),
        rule=rule,
    )


# --- a row


@dataclass(frozen=True)
class ReferenceStep:
    """What one step does to a row."""

    injection: ReferenceInjection | None
    base: BaseRow | None
    """What the base leaves where nothing is injected; None: the row as it was."""

    def difference(self, before: Sequence[float], after: Sequence[float]) -> str | None:
        """What is wrong with a row of the product, if anything."""
        if self.injection is not None:
            left = {i: y for i, y in enumerate(after) if y != -math.inf}
            if len(left) == 1 and next(iter(left.values())) == 0:
                return None if left.keys() <= self.injection.tokens else f"injected {left}"
            return f"not one-hot: {left}"
        if self.base is not None:
            return self.base.difference(after)
        is_same = all(
            left == right or (math.isnan(left) and math.isnan(right))
            for left, right in zip(before, after, strict=True)
        )
        return None if is_same else f"changed to {list(after)}"


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
    tokens: ReferenceTokens
    siblings: Siblings | None = None
    injections: list[ReferenceInjection] = field(default_factory=list)
    deferred: int = 0
    is_sure: bool = True
    """Whether float32 must have decided each step as float64 did."""

    def __post_init__(self) -> None:
        """Starts with rules that have done nothing."""
        self._memory = [_RuleMemory() for _ in self.schedule.rules]

    def step(
        self, position: int, logits: Sequence[float], tokens_so_far: Sequence[int] = ()
    ) -> ReferenceStep:
        """Does what the schedule does at `position`; positions only rise.

        Args:
            position: Tokens generated so far.
            logits: The row.
            tokens_so_far: Their ids; only rules that read the text need them.
        """
        injection = self._injection(position, logits, tokens_so_far)
        base = None
        if injection is None and self.schedule.base:
            piece = piece_at(self.schedule.base, position)
            base = base_row(logits, piece, position, self.tokens)
        return ReferenceStep(injection, base)

    def _injection(
        self, position: int, logits: Sequence[float], tokens_so_far: Sequence[int]
    ) -> ReferenceInjection | None:
        for rule, memory in zip(self.schedule.rules, self._memory, strict=True):
            if memory.owed and position > memory.nominal + rule.defer:
                memory.owed = 0
        for index, (rule, memory) in enumerate(zip(self.schedule.rules, self._memory, strict=True)):
            if self._starts(index, position, logits, tokens_so_far):
                left = math.inf if rule.max_injections is None else rule.max_injections
                memory.owed = int(min(rule.burst, left - memory.count))
                memory.nominal = position
            if memory.owed:
                return self._carry_out(index, position, logits)
        return None

    def _starts(
        self, index: int, position: int, logits: Sequence[float], tokens_so_far: Sequence[int]
    ) -> bool:
        rule, memory = self.schedule.rules[index], self._memory[index]
        is_in_burst = memory.owed > 0 and memory.nominal == position
        is_cooling = memory.last is not None and position - memory.last <= rule.cooldown
        is_spent = rule.max_injections is not None and memory.count >= rule.max_injections
        if is_in_burst or is_cooling or is_spent:
            return False
        answers = may_fire(
            self.seed,
            rule,
            index,
            position,
            logits=logits,
            tokens_so_far=tokens_so_far,
            tokens=self.tokens,
        )
        self.is_sure &= len(answers) == 1
        return True in answers

    def _carry_out(
        self, index: int, position: int, logits: Sequence[float]
    ) -> ReferenceInjection | None:
        rule, memory = self.schedule.rules[index], self._memory[index]
        found = rule_candidates(logits, rule, self.tokens)
        self.is_sure &= len({len(each) >= 2 for each in found.possible}) == 1
        injection = inject(
            logits,
            rule,
            found,
            index=index,
            seed=self.seed,
            position=position,
            siblings=self.siblings,
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


def differences(trace: Trace, expected: ReferenceRow) -> list[str]:
    """What a product's trace has otherwise than the reference; empty where they agree.

    Args:
        trace: The product's.
        expected: The reference, having seen the same logits; a sure one.
    """
    found = []
    if trace.deferred != expected.deferred:
        found.append(f"deferred {trace.deferred}, not {expected.deferred}")
    ours = [injection.position for injection in trace.injections]
    theirs = [each.best.position for each in expected.injections]
    if ours != theirs:
        return [*found, f"injected at {ours}, not {theirs}"]
    for injection, reference in zip(trace.injections, expected.injections, strict=True):
        outcome = reference.outcomes.get((injection.token_id, injection.support_size))
        if outcome is None or not _is_close(injection, outcome, reference):
            found.append(f"{injection}, not {outcome or reference.best}")
    return found


def _is_close(ours: Injection, theirs: Injection, reference: ReferenceInjection) -> bool:
    inexact = {"temperature": 0.0, "logprob": 0.0, "entropy": 0.0}
    return (
        ours._replace(**inexact) == theirs._replace(**inexact)
        and math.isclose(ours.temperature, theirs.temperature, rel_tol=1e-6)
        and _is_near(ours.logprob, theirs.logprob, reference.logprob_slack)
        and _is_near(ours.entropy, theirs.entropy, reference.entropy_slack)
    )


def _is_near(ours: float, theirs: float, slack: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=NATS_RELATIVE, abs_tol=NATS_ABSOLUTE + slack)
