"""The rules of all schedules seen so far, as columns on the device.

A rule is registered once and then known by its index, so that a batch of rows with different
schedules is one gather.

Shapes: K rows, V vocabulary, G registered rules.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from negtemp_data.sampling.records import Rule, Vocabulary
from negtemp_data.sampling.supports import Limits
from negtemp_data.sampling.vocabulary import TokenTable

_NO_LIMIT = torch.iinfo(torch.int64).max
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class _Columns:
    """One entry per registered rule."""

    temperature_G: Tensor
    limits: Limits
    burst_G: Tensor
    max_injections_G: Tensor
    cooldown_G: Tensor
    defer_G: Tensor
    vocabulary_G: Tensor


class RuleTable:
    """Registered rules and the vocabulary masks that they use."""

    def __init__(self, tokens: TokenTable, vocab_size: int, device: torch.device) -> None:
        """Starts empty, for logits of width `vocab_size` on `device`."""
        self._tokens = tokens
        self._vocab_size = vocab_size
        self._device = device
        self._index: dict[Rule, int] = {}
        self._mask_index: dict[Vocabulary, int] = {}
        self._masks: list[Tensor] = []
        self.rules: list[Rule] = []
        self.columns = self._columns()

    def register(self, rule: Rule) -> int:
        """Index of `rule`.

        Raises:
            ValueError: Its vocabulary leaves nothing to draw on this model.
        """
        if rule not in self._index:
            if rule.vocabulary not in self._mask_index:
                mask_V = self._tokens.mask(rule.vocabulary, self._vocab_size, self._device)
                self._mask_index[rule.vocabulary] = len(self._masks)
                self._masks.append(mask_V)
            self._index[rule] = len(self.rules)
            self.rules.append(rule)
            self.columns = self._columns()
        return self._index[rule]

    def allowed(self, rule_K: Tensor) -> Tensor:
        """bool [K, V]: the tokens that each row's rule may draw."""
        if len(self._masks) == 1:
            return self._masks[0].expand(len(rule_K), -1)
        return torch.stack(self._masks)[self.columns.vocabulary_G[rule_K]]

    def limits(self, rule_K: Tensor) -> Limits:
        """Each row's support."""
        return Limits(*(column_G[rule_K] for column_G in self.columns.limits))

    def _columns(self) -> _Columns:
        rules, supports = self.rules, [rule.support for rule in self.rules]

        def floats(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._device)

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=self._device)

        return _Columns(
            temperature_G=floats([_float32_temperature(rule.temperature) for rule in rules]),
            limits=Limits(
                min_p_K=floats([s.min_p or 0.0 for s in supports]),
                top_p_K=torch.tensor(
                    [1.0 if s.top_p is None else s.top_p for s in supports],
                    dtype=torch.float64,
                    device=self._device,
                ),
                top_k_K=ints([s.top_k or 0 for s in supports]),
                top_n_sigma_K=floats(
                    [torch.inf if s.top_n_sigma is None else s.top_n_sigma for s in supports]
                ),
                epsilon_K=floats([s.epsilon or 0.0 for s in supports]),
            ),
            burst_G=ints([rule.burst for rule in rules]),
            max_injections_G=ints(
                [
                    _NO_LIMIT if rule.max_injections is None else rule.max_injections
                    for rule in rules
                ]
            ),
            cooldown_G=ints([rule.cooldown for rule in rules]),
            defer_G=ints([rule.defer for rule in rules]),
            vocabulary_G=ints([self._mask_index[rule.vocabulary] for rule in rules]),
        )


def _float32_temperature(temperature: float) -> float:
    """The temperature, kept off 0 where float32 would lose its sign: T → 0⁻ is not T = 0."""
    return math.copysign(max(abs(temperature), _TINY), temperature) if temperature else 0.0
