"""What each row's rules remember from step to step, on the device.

A firing owes `burst` injections. The next one is due at its nominal position and may wait `defer`
steps beyond it for a second candidate; then the firing is over. A firing is ignored while a burst
is under way or cooling down, and replaces an injection that waits.

A step that is computed again (a chunk of a prefill, a recomputed step) first undoes itself: the
state before a slot's last step is kept beside the present one.

Shapes: K rows looked at, S slots, M rules of the longest schedule.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from negtemp_data.sampling.rules import RuleTable

_LONG_AGO = -(2**40)
_NO_RULE = -1


class RuleState(NamedTuple):
    """State of rules in rows; int64 tensors of one shape."""

    owed: Tensor
    """Injections that the present firing still has to make."""
    nominal: Tensor
    """Position of the next of them, unless it has to wait."""
    last: Tensor
    """Position of the rule's last injection."""
    n_injected: Tensor
    """Injections of the rule in this row."""


class RowStates:
    """The states of all slots."""

    def __init__(self, rules: RuleTable, device: torch.device) -> None:
        """Starts with no slots; `open` makes room."""
        self._rules = rules
        self._device = device
        self.seed_S = torch.zeros(0, dtype=torch.int64, device=device)
        self.rule_SM = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._stepped_S = torch.zeros(0, dtype=torch.int64, device=device)
        # Index 0 is the present state, 1 the one before the last step. F: fields of RuleState.
        self._state_2SMF = torch.zeros(2, 0, 0, 4, dtype=torch.int64, device=device)
        self._deferred_2S = torch.zeros(2, 0, dtype=torch.int64, device=device)

    def open(self, slot: int, seed: int, rule_indices: list[int]) -> None:
        """Begins a row in `slot` with these registered rules."""
        self._make_room(slot + 1, len(rule_indices))
        self.seed_S[slot] = seed
        self.rule_SM[slot] = _NO_RULE
        self.rule_SM[slot, : len(rule_indices)] = torch.tensor(rule_indices, dtype=torch.int64)
        self._stepped_S[slot] = _LONG_AGO
        self._state_2SMF[:, slot] = torch.tensor(RuleState(0, 0, _LONG_AGO, 0))  # type: ignore[arg-type]
        self._deferred_2S[:, slot] = 0

    def deferred(self) -> list[int]:
        """Injections of each slot that had to wait; copies to the host."""
        return [int(n) for n in self._deferred_2S[0].tolist()]

    def is_waiting(self, slot_K: Tensor) -> Tensor:
        """bool [K]: rows in which some rule still owes an injection."""
        return (self._state_2SMF[0, slot_K, :, 0] > 0).any(dim=1)

    def settle(self, slot_K: Tensor, position_K: Tensor, fires_KM: Tensor) -> Tensor:
        """Takes in this position's firings.

        Args:
            slot_K: int64 slots.
            position_K: int64 positions about to be sampled.
            fires_KM: bool, the rules that fire there.

        Returns:
            int64 [K]: index of the rule that is due in each row, M where none is.
        """
        again_K = (self._stepped_S[slot_K] == position_K).long()
        state = RuleState(*self._state_2SMF[again_K, slot_K].unbind(-1))
        self._state_2SMF[1, slot_K] = torch.stack(state, dim=-1)
        self._deferred_2S[:, slot_K] = self._deferred_2S[again_K, slot_K]
        self._stepped_S[slot_K] = position_K

        columns, rule_KM = self._rules.columns, self.rule_SM[slot_K]
        position_K1 = position_K[:, None]
        is_over_KM = position_K1 > state.nominal + columns.defer_G[rule_KM]
        owed_KM = state.owed.masked_fill(is_over_KM, 0)
        left_KM = columns.max_injections_G[rule_KM] - state.n_injected
        in_burst_KM = (owed_KM > 0) & (state.nominal == position_K1)
        is_cool_KM = position_K1 - state.last > columns.cooldown_G[rule_KM]
        starts_KM = fires_KM & is_cool_KM & ~in_burst_KM & (left_KM > 0)
        fired_KM = torch.minimum(columns.burst_G[rule_KM], left_KM)

        rule_M = torch.arange(rule_KM.shape[1], device=self._device)
        n_rules = len(rule_M)
        is_due_KM = starts_KM | (owed_KM > 0)
        winner_K = torch.where(is_due_KM, rule_M, n_rules).amin(dim=1)
        # A firing behind the winner is lost: the first that is due wins the step.
        starts_KM &= rule_M <= winner_K[:, None]
        owed_KM = torch.where(starts_KM, fired_KM, owed_KM)
        nominal_KM = torch.where(starts_KM, position_K1, state.nominal)
        self._state_2SMF[0, slot_K] = torch.stack(
            state._replace(owed=owed_KM, nominal=nominal_KM), dim=-1
        )
        return winner_K

    def finish(
        self, slot_K: Tensor, position_K: Tensor, winner_K: Tensor, is_injected_K: Tensor
    ) -> None:
        """Writes down what became of the due rules: injected, or left waiting.

        Args:
            slot_K: int64 slots.
            position_K: int64 positions.
            winner_K: int64 index of the due rule, below M; where none is due, any.
            is_injected_K: bool; False leaves the injection waiting.
        """
        state_KF = self._state_2SMF[0, slot_K, winner_K]
        owed_K, nominal_K, _, n_injected_K = state_KF.unbind(-1)
        injected_KF = torch.stack(
            RuleState(owed_K - 1, position_K + 1, position_K, n_injected_K + 1), dim=-1
        )
        self._state_2SMF[0, slot_K, winner_K] = torch.where(
            is_injected_K[:, None], injected_KF, state_KF
        )
        may_wait_K = self._rules.columns.defer_G[self.rule_SM[slot_K, winner_K]] > 0
        is_at_nominal_K = (owed_K > 0) & (nominal_K == position_K)
        begins_to_wait_K = ~is_injected_K & may_wait_K & is_at_nominal_K
        self._deferred_2S[0, slot_K] += begins_to_wait_K.long()

    def _make_room(self, n_slots: int, n_rules: int) -> None:
        slots, rules = self.rule_SM.shape
        more_slots = 0 if n_slots <= slots else max(64, slots, n_slots - slots)
        more_rules = max(0, n_rules - rules)
        if not more_slots and not more_rules:
            return
        pad = torch.nn.functional.pad
        self.seed_S = pad(self.seed_S, (0, more_slots))
        self._stepped_S = pad(self._stepped_S, (0, more_slots))
        self._deferred_2S = pad(self._deferred_2S, (0, more_slots))
        self.rule_SM = pad(self.rule_SM, (0, more_rules, 0, more_slots), value=_NO_RULE)
        self._state_2SMF = pad(self._state_2SMF, (0, 0, 0, more_rules, 0, more_slots))
