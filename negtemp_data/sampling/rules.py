"""The rules of all schedules seen so far, as columns on the device.

A rule is registered once and then known by its index, so that a batch of rows with different
schedules is one gather. Index 0 is a rule that never fires: it fills the rows of shorter schedules.

Shapes: K rows, M rules of the longest schedule, V vocabulary, G registered rules, N vocabulary
masks, A positions of the longest list.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negtemp_data.sampling.masks import MaskTable
from negtemp_data.sampling.records import (
    BernoulliTrigger,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    PositionTrigger,
    Rule,
    Support,
    TextTrigger,
)
from negtemp_data.sampling.stats import Needs
from negtemp_data.sampling.supports import Limits, Uses
from negtemp_data.sampling.text import TextAutomata
from negtemp_data.sampling.vocabulary import TokenTable

NO_LIMIT = torch.iinfo(torch.int64).max
_TINY = torch.finfo(torch.float32).tiny
_NEVER = Rule(BernoulliTrigger(0.0), 1.0)


@dataclass(frozen=True)
class FiringColumns:
    """When each registered rule fires, as far as seed and position decide it."""

    start_G: Tensor
    stop_G: Tensor
    every_G: Tensor
    """0: not periodic."""
    jitter_G: Tensor
    rate_G: Tensor
    """Fires where a 32-bit word is below it."""
    at_GA: Tensor
    """Listed positions, padded with −1."""


@dataclass(frozen=True)
class RuleColumns:
    """One entry per registered rule."""

    firing: FiringColumns
    temperature_G: Tensor
    limits: Limits
    entropy_above_G: Tensor
    entropy_below_G: Tensor
    margin_below_G: Tensor
    reads_stats_G: Tensor
    """Whether the rule looks at entropy or margin."""
    text_state_G: Tensor
    """State in which the rule's automaton starts; −1: it reads no text."""
    burst_G: Tensor
    max_injections_G: Tensor
    cooldown_G: Tensor
    defer_G: Tensor
    vocabulary_G: Tensor
    guard_G: Tensor
    """Mask of the tokens that must not be displaced."""
    is_distinct_G: Tensor


def needs_of(rules: tuple[Rule, ...]) -> Needs:
    """What these rules look at."""
    needs = Needs(0)
    for rule in rules:
        match rule.trigger:
            case EntropyTrigger() | MarginTrigger():
                needs |= Needs.LOGITS
            case TextTrigger("sentence" | "word"):
                needs |= Needs.TEXT | Needs.LOGITS
            case TextTrigger():
                needs |= Needs.TEXT
    return needs


class _Entry(NamedTuple):
    """A registered rule."""

    rule: Rule
    allowed: int
    """Index of the mask of its vocabulary."""
    guard: int
    """Index of the mask of its guard."""
    text_state: int
    """State in which its automaton starts; −1: it reads no text."""


class RuleTable:
    """Registered rules, and the automata and masks that they use."""

    def __init__(
        self, tokens: TokenTable, vocab_size: int, device: torch.device, masks: MaskTable
    ) -> None:
        """Starts with the rule that never fires, for logits of width `vocab_size` on `device`."""
        self._device = device
        self._masks = masks
        self._index: dict[Rule, int] = {}
        self._entries: list[_Entry] = []
        self.automata = TextAutomata(tokens, vocab_size, device)
        self.any_distinct = False
        self.register(_NEVER)

    def register(self, rule: Rule) -> int:
        """Index of `rule`.

        Raises:
            ValueError: Its vocabulary leaves nothing to draw on this model, or a class is unknown.
        """
        if rule not in self._index:
            trigger = rule.trigger
            entry = _Entry(
                rule,
                allowed=self._masks.register(rule.vocabulary),
                guard=self._masks.register_classes(rule.guard),
                text_state=(
                    self.automata.register(trigger) if isinstance(trigger, TextTrigger) else -1
                ),
            )
            entries = [*self._entries, entry]
            # First what may fail, so that a refused rule leaves nothing behind.
            self.columns = self._columns_of(entries)
            self._index[rule] = len(self._entries)
            self._entries = entries
            self.uses = uses_of([entry.rule.support for entry in entries])
            self.any_distinct |= rule.is_distinct
        return self._index[rule]

    def _columns_of(self, entries: list["_Entry"]) -> RuleColumns:
        rules = [entry.rule for entry in entries]

        def column(dtype: torch.dtype, *values: Any) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        def floats(*values: float) -> Tensor:
            return column(torch.float32, *values)

        def ints(*values: int) -> Tensor:
            return column(torch.int64, *values)

        triggers = [rule.trigger for rule in rules]
        supports = [rule.support for rule in rules]
        periodic = [t if isinstance(t, PeriodicTrigger) else None for t in triggers]
        entropy = [t if isinstance(t, EntropyTrigger) else EntropyTrigger() for t in triggers]
        listed = [t.positions if isinstance(t, PositionTrigger) else () for t in triggers]
        longest = max(map(len, listed))
        return RuleColumns(
            firing=FiringColumns(
                start_G=ints(*(rule.start for rule in rules)),
                stop_G=ints(*(NO_LIMIT if rule.stop is None else rule.stop for rule in rules)),
                every_G=ints(*(trigger.every if trigger else 0 for trigger in periodic)),
                jitter_G=ints(*(trigger.jitter if trigger else 0 for trigger in periodic)),
                rate_G=ints(
                    *(
                        round(t.rate * 2**32) if isinstance(t, BernoulliTrigger) else 0
                        for t in triggers
                    )
                ),
                at_GA=torch.tensor(
                    [[*at, *[-1] * (longest - len(at))] for at in listed],
                    dtype=torch.int64,
                    device=self._device,
                ).view(len(rules), longest),
            ),
            temperature_G=floats(*(float32_temperature(rule.temperature) for rule in rules)),
            limits=limit_columns(supports, self._device),
            entropy_above_G=floats(*(trigger.above for trigger in entropy)),
            entropy_below_G=floats(*(trigger.below for trigger in entropy)),
            margin_below_G=floats(
                *(t.below if isinstance(t, MarginTrigger) else -math.inf for t in triggers)
            ),
            reads_stats_G=column(
                torch.bool, *(isinstance(t, EntropyTrigger | MarginTrigger) for t in triggers)
            ),
            text_state_G=ints(*(entry.text_state for entry in entries)),
            burst_G=ints(*(rule.burst for rule in rules)),
            max_injections_G=ints(
                *(
                    NO_LIMIT if rule.max_injections is None else rule.max_injections
                    for rule in rules
                )
            ),
            cooldown_G=ints(*(rule.cooldown for rule in rules)),
            defer_G=ints(*(rule.defer for rule in rules)),
            vocabulary_G=ints(*(entry.allowed for entry in entries)),
            guard_G=ints(*(entry.guard for entry in entries)),
            is_distinct_G=column(torch.bool, *(rule.is_distinct for rule in rules)),
        )


def limit_columns(supports: list[Support], device: torch.device) -> Limits:
    """Supports as limits, one entry each."""

    def column(neutral: float, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        values = [getattr(support, name) for support in supports]
        return torch.tensor(
            [neutral if value is None else value for value in values], dtype=dtype, device=device
        )

    return Limits(
        min_p_K=column(0.0, "min_p"),
        top_p_K=column(1.0, "top_p", torch.float64),
        top_k_K=column(0, "top_k", torch.int64),
        top_n_sigma_K=column(torch.inf, "top_n_sigma"),
        epsilon_K=column(0.0, "epsilon"),
        xtc_K=column(0.0, "xtc"),
    )


def uses_of(supports: list[Support]) -> Uses:
    """The costly limits among `supports`."""
    return Uses(
        top_p=any(support.top_p is not None for support in supports),
        top_k=max((support.top_k or 0 for support in supports), default=0),
        top_n_sigma=any(support.top_n_sigma is not None for support in supports),
        xtc=any(support.xtc is not None for support in supports),
    )


def float32_temperature(temperature: float) -> float:
    """The temperature, kept off 0 where float32 would lose its sign: T → 0⁻ is not T = 0."""
    return math.copysign(max(abs(temperature), _TINY), temperature) if temperature else 0.0
