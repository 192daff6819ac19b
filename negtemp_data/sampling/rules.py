"""The rules of all schedules seen so far, as matrices on the device.

A rule is registered once and then known by its index, so that a batch of rows with different
schedules is one gather. Index 0 is a rule that never fires: it fills the rows of shorter schedules.

Shapes: G registered rules, C columns, A positions of the longest list, V vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negtemp_data.sampling.columns import RuleNumber, RuleValue
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
        self.masks = masks
        self._index: dict[Rule, int] = {}
        self._entries: list[_Entry] = []
        self.automata = TextAutomata(tokens, vocab_size, device)
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
                allowed=self.masks.register(rule.vocabulary),
                guard=self.masks.register_classes(rule.guard),
                text_state=(
                    self.automata.register(trigger) if isinstance(trigger, TextTrigger) else -1
                ),
            )
            entries = [*self._entries, entry]
            # First what may fail, so that a refused rule leaves nothing behind.
            self._fill(entries)
            self._index[rule] = len(self._entries)
            self._entries = entries
            self.uses = uses_of([entry.rule.support for entry in entries])
        return self._index[rule]

    def _fill(self, entries: list[_Entry]) -> None:
        """Replaces the matrices by longer ones."""
        numbers = [_number_row(entry) for entry in entries]
        values = [_value_row(entry.rule) for entry in entries]
        triggers = [entry.rule.trigger for entry in entries]
        listed = [t.positions if isinstance(t, PositionTrigger) else () for t in triggers]
        longest = max(map(len, listed))
        padded = [[*at, *[-1] * (longest - len(at))] for at in listed]
        self.number_GC = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        """Columns `RuleNumber`."""
        self.value_GC = torch.tensor(values, dtype=torch.float64, device=self._device)
        """Columns `RuleValue`."""
        at_GA = torch.tensor(padded, dtype=torch.int64, device=self._device)
        self.at_GA = at_GA.view(len(entries), longest)
        """Listed positions, padded with −1."""


def _number_row(entry: _Entry) -> list[int]:
    rule, trigger = entry.rule, entry.rule.trigger
    periodic = trigger if isinstance(trigger, PeriodicTrigger) else None
    row = {
        RuleNumber.START: rule.start,
        RuleNumber.STOP: NO_LIMIT if rule.stop is None else rule.stop,
        RuleNumber.EVERY: periodic.every if periodic else 0,
        RuleNumber.JITTER: periodic.jitter if periodic else 0,
        RuleNumber.RATE: (
            round(trigger.rate * 2**32) if isinstance(trigger, BernoulliTrigger) else 0
        ),
        RuleNumber.READS_STATS: isinstance(trigger, EntropyTrigger | MarginTrigger),
        RuleNumber.TEXT_STATE: entry.text_state,
        RuleNumber.BURST: rule.burst,
        RuleNumber.MAX_INJECTIONS: (
            NO_LIMIT if rule.max_injections is None else rule.max_injections
        ),
        RuleNumber.COOLDOWN: rule.cooldown,
        RuleNumber.DEFER: rule.defer,
        RuleNumber.VOCABULARY: entry.allowed,
        RuleNumber.GUARD: entry.guard,
        RuleNumber.IS_DISTINCT: rule.is_distinct,
        RuleNumber.TOP_K: rule.support.top_k or 0,
    }
    return [int(row[column]) for column in RuleNumber]


def _value_row(rule: Rule) -> list[float]:
    trigger, support = rule.trigger, rule.support
    entropy = trigger if isinstance(trigger, EntropyTrigger) else EntropyTrigger()

    def or_neutral(value: float | None, neutral: float) -> float:
        return neutral if value is None else value

    row = {
        RuleValue.TEMPERATURE: float32_temperature(rule.temperature),
        RuleValue.ENTROPY_ABOVE: entropy.above,
        RuleValue.ENTROPY_BELOW: entropy.below,
        RuleValue.MARGIN_BELOW: trigger.below if isinstance(trigger, MarginTrigger) else -math.inf,
        RuleValue.MIN_P: or_neutral(support.min_p, 0.0),
        RuleValue.TOP_P: or_neutral(support.top_p, 1.0),
        RuleValue.TOP_N_SIGMA: or_neutral(support.top_n_sigma, math.inf),
        RuleValue.EPSILON: or_neutral(support.epsilon, 0.0),
        RuleValue.XTC: or_neutral(support.xtc, 0.0),
    }
    return [
        row[column] if column is RuleValue.TOP_P else float(np.float32(row[column]))
        for column in RuleValue
    ]


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
