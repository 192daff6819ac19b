"""Frozen records: what a schedule asks for, and what an injection did.

A schedule is a base, which every step uses, and rules, which inject a token at some steps. Where
`Schedule.base` is empty the engine samples the other steps by itself.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

# --- when a rule fires


@dataclass(frozen=True, slots=True)
class PeriodicTrigger:
    """Fires at start + k·every + U{0…jitter}, one firing in each period."""

    every: int
    jitter: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError where a period could have no firing or two."""
        if not 0 <= self.jitter < self.every:
            raise ValueError(f"needs 0 <= jitter < every; found {self}")


@dataclass(frozen=True, slots=True)
class BernoulliTrigger:
    """Fires at each position with probability `rate`, independently."""

    rate: float

    def __post_init__(self) -> None:
        """Raises ValueError where `rate` is no probability."""
        if not 0 <= self.rate <= 1:
            raise ValueError(f"needs 0 <= rate <= 1; found {self}")


@dataclass(frozen=True, slots=True)
class PositionTrigger:
    """Fires at these positions."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EntropyTrigger:
    """Fires where the entropy of softmax(z), in nats, is above or below a bound, both exclusive."""

    above: float = math.inf
    below: float = -math.inf


@dataclass(frozen=True, slots=True)
class MarginTrigger:
    """Fires where p₁ − p₂, the lead of the most likely token, is below a bound."""

    below: float


@dataclass(frozen=True, slots=True)
class TextTrigger:
    """Fires where the generated text has just come to an end of some kind.

    Definitions: `negtemp_data.sampling.text`.
    """

    after: Literal["sentence", "line", "word", "literal"]
    literal: str = ""
    """The text itself, for `literal`."""

    def __post_init__(self) -> None:
        """Raises ValueError where there is no text to wait for."""
        if (self.after == "literal") != bool(self.literal):
            raise ValueError(f"needs `literal`, and only for after='literal'; found {self}")


PositionalTrigger = PeriodicTrigger | BernoulliTrigger | PositionTrigger
"""Triggers that depend on nothing but seed and position, so that the host knows them in advance."""

Trigger = PositionalTrigger | EntropyTrigger | MarginTrigger | TextTrigger

# --- what may be drawn


@dataclass(frozen=True, slots=True)
class Support:
    """Limits whose intersection is the candidate set; None: this limit is not used.

    All None is the whole vocabulary. Definitions: `negtemp_data.sampling.supports`.
    """

    min_p: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    top_n_sigma: float | None = None
    epsilon: float | None = None
    xtc: float | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token classes that may be drawn: those in `include` (empty: all) and not in `exclude`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """When to inject, and what.

    Positions count generated tokens from 0; cooldown, burst and defer are in tokens.
    """

    trigger: Trigger
    temperature: float
    support: Support = Support()
    vocabulary: Vocabulary = Vocabulary()
    guard: tuple[str, ...] = ()
    """Token classes that must not be displaced: where the most likely token is one, S is empty."""
    is_distinct: bool = False
    """Siblings share the noise, and the r-th of them takes the r-th best candidate."""
    start: int = 0
    stop: int | None = None
    cooldown: int = 0
    burst: int = 1
    max_injections: int | None = None
    defer: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError where the rule could not be carried out."""
        if math.isnan(self.temperature):
            raise ValueError("temperature must not be nan")
        if min(self.start, self.cooldown, self.defer) < 0 or self.burst < 1:
            raise ValueError("start, cooldown and defer must be >= 0, burst >= 1")

    @property
    def is_positional(self) -> bool:
        """Whether seed and position alone decide where the rule fires."""
        return isinstance(self.trigger, PositionalTrigger)

    @property
    def longest_wait(self) -> int:
        """Most tokens from a firing to the last injection that it can still cause."""
        return self.burst * (1 + self.defer) - 1


# --- the base


@dataclass(frozen=True, slots=True)
class AnnealedTemperature:
    """T moves from `first` at position 0 to `last` at position `over`, and stays.

    `linear` is linear in β = 1/T; `cosine` is half a cosine wave in T; `exponential` is geometric.
    """

    first: float
    last: float
    over: int
    shape: Literal["linear", "cosine", "exponential"] = "linear"


@dataclass(frozen=True, slots=True)
class EntropyTemperature:
    """T = t0·n^(θ/H), H the entropy of the step in nats. Source: EDT, 2403.14541."""

    t0: float
    n: float = 0.8
    theta: float = 1.0


@dataclass(frozen=True, slots=True)
class DynamicTemperature:
    """T = low + (high − low)·(H/ln m)^exponent, m the number of finite logits.

    Source: llama.cpp, "dynatemp".
    """

    low: float
    high: float
    exponent: float = 1.0


Temperature = float | AnnealedTemperature | EntropyTemperature | DynamicTemperature


@dataclass(frozen=True, slots=True)
class Piece:
    """How a stretch of positions samples.

    In this order: S = support ∩ vocabulary on softmax(z); z/T on S; then min_p, top_k and top_p on
    the result. Where S is empty it is the most likely token of the vocabulary.
    """

    temperature: Temperature
    until: int | None = None
    """First position that is not of this piece; None: the last piece."""
    support: Support = Support()
    vocabulary: Vocabulary = Vocabulary()
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A base and injection rules in order of precedence: at each step the first due wins."""

    rules: tuple[Rule, ...] = ()
    base: tuple[Piece, ...] = ()
    """Pieces in order of `until`; empty: the engine samples by itself."""

    def __post_init__(self) -> None:
        """Raises ValueError where the pieces do not cover every position once."""
        ends = [piece.until for piece in self.base]
        bounded = [end for end in ends if end is not None]
        if ends and (ends[-1] is not None or len(bounded) != len(ends) - 1):
            raise ValueError("only the last piece of a base, and it, must be without `until`")
        if bounded != sorted(set(bounded)) or any(end < 1 for end in bounded):
            raise ValueError(f"the pieces of a base must rise from 1 on; found until {bounded}")

    @property
    def is_distinct(self) -> bool:
        """Whether a rule needs to know the row's siblings."""
        return any(rule.is_distinct for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Siblings:
    """A row's place among the samples of its prompt, for distinct draws."""

    seed: int
    """Key of the noise that they share, from 0 to 2⁶³ − 1."""
    index: int
    """0 for the first."""


# --- what happened


class Injection(NamedTuple):
    """One injected token.

    `logprob` and `rank` (1-based: how many logits are at least as large) are those of the token at
    T = 1 before the injection, `entropy` is that of the whole row in nats.
    """

    position: int
    token_id: int
    displaced_id: int
    temperature: float
    support_size: int
    logprob: float
    rank: int
    entropy: float
    rule: int


class Trace(NamedTuple):
    """What the sampler did to one request."""

    injections: list[Injection]
    """In order of position."""
    deferred: int
    """Injections that found fewer than two candidates at their own position and had to wait."""
