"""Frozen records: what a schedule asks for, and what an injection did.

`Schedule.to_json` is how a schedule travels inside a request; `from_json` caches, so that a
schedule which thousands of requests share is one object.
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class PeriodicTrigger:
    """Fires at start + k·every + U{0…jitter}, one firing in each period."""

    every: int
    jitter: int = 0


@dataclass(frozen=True, slots=True)
class BernoulliTrigger:
    """Fires at each position with probability `rate`, independently."""

    rate: float


Trigger = PeriodicTrigger | BernoulliTrigger


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
        if isinstance(self.trigger, PeriodicTrigger) and not (
            0 <= self.trigger.jitter < self.trigger.every
        ):
            raise ValueError(f"needs 0 <= jitter < every; found {self.trigger}")
        if isinstance(self.trigger, BernoulliTrigger) and not 0 <= self.trigger.rate <= 1:
            raise ValueError(f"needs 0 <= rate <= 1; found {self.trigger}")
        if min(self.start, self.cooldown, self.defer) < 0 or self.burst < 1:
            raise ValueError("start, cooldown and defer must be >= 0, burst >= 1")

    @property
    def longest_wait(self) -> int:
        """Most tokens from a firing to the last injection that it can still cause."""
        return self.burst * (1 + self.defer) - 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Injection rules in order of precedence: at each step the first that is due wins."""

    rules: tuple[Rule, ...]

    def to_json(self) -> str:
        """Canonical JSON; infinite temperatures are the strings `inf` and `-inf`."""
        data = asdict(self)
        for rule in data["rules"]:
            if math.isinf(rule["temperature"]):
                rule["temperature"] = str(rule["temperature"])
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @staticmethod
    @lru_cache(maxsize=1024)
    def from_json(text: str) -> "Schedule":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: The text is no schedule; the message says why.
        """
        try:
            return Schedule(tuple(_read_rule(rule) for rule in json.loads(text)["rules"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a schedule: {error!r} in {text[:200]!r}") from error


def _read_rule(data: dict[str, Any]) -> Rule:
    trigger = data["trigger"]
    vocabulary = data["vocabulary"]
    return Rule(
        **{
            **data,
            "trigger": (
                PeriodicTrigger(**trigger) if "every" in trigger else BernoulliTrigger(**trigger)
            ),
            "temperature": float(data["temperature"]),
            "support": Support(**data["support"]),
            "vocabulary": Vocabulary(tuple(vocabulary["include"]), tuple(vocabulary["exclude"])),
        }
    )


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
