"""What each row's rules remember from step to step, on the device.

A firing owes `burst` injections. The next one is due at its nominal position and may wait `defer`
steps beyond it for a second candidate; then the firing is over. A firing is ignored while a burst
is under way or cooling down, and replaces an injection that waits.

A step may be computed again: a chunk of a prefill, or a draft token that was not accepted. So the
states before the last few positions of each slot are kept, each with the position that it stands
before, and a step begins from the one before its own position.

Shapes: K rows looked at, S slots, M rules of the longest schedule, W kept states of a slot, F
fields of a rule's state. Slot 0 is nobody's: rows of no request may point to it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from negtemp_data.sampling.firing import bernoulli_hits, is_in_range, periodic_hits
from negtemp_data.sampling.records import Siblings
from negtemp_data.sampling.rules import RuleTable

_LONG_AGO = -(2**40)


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
    n_deferred: Tensor
    """Injections that had to wait."""
    text: Tensor
    """State of the rule's text automaton; −1 where it has none."""


class Pending(NamedTuple):
    """Rows at the beginning of a step."""

    slot_K: Tensor
    position_K: Tensor
    rule_KM: Tensor
    before: RuleState
    """As stored: what this step begins from, should it be computed again."""
    now: RuleState
    """With this position's token read and what waited too long given up."""
    may_start_KM: Tensor
    """bool: rules that would take a firing here."""
    is_again_K: Tensor
    """bool: the position was computed before, and what came of it no longer counts."""


class RowStates:
    """The states of all slots."""

    def __init__(self, rules: RuleTable, device: torch.device, n_kept: int) -> None:
        """Starts with no slots but slot 0; `open` makes room.

        Args:
            rules: Where the slots' rules are registered.
            device: Where the states live.
            n_kept: Most rows that a request has in a step, and one more.
        """
        self._rules = rules
        self._device = device
        self._n_kept = n_kept

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.seed_S = zeros(1)
        self.siblings_seed_S = zeros(1)
        self.sibling_S = zeros(1)
        self.base_S = zeros(1) - 1
        self.rule_SM = zeros(1, 1)
        self._tag_WS = zeros(n_kept, 1)
        self._state_WSMF = zeros(n_kept, 1, 1, len(RuleState._fields))

    def open(
        self,
        slot: int,
        seed: int,
        rule_indices: list[int],
        base: int,
        siblings: Siblings | None,
    ) -> None:
        """Begins a row in `slot` with these registered rules and this registered base (or −1)."""
        self._make_room(slot + 1, len(rule_indices))
        self.seed_S[slot] = seed
        self.base_S[slot] = base
        self.siblings_seed_S[slot] = siblings.seed if siblings else 0
        self.sibling_S[slot] = siblings.index if siblings else 0
        self.rule_SM[slot] = 0
        self.rule_SM[slot, : len(rule_indices)] = torch.tensor(rule_indices, dtype=torch.int64)
        self._tag_WS[:, slot] = _LONG_AGO
        blank = RuleState(owed=0, nominal=0, last=_LONG_AGO, n_injected=0, n_deferred=0, text=-1)  # type: ignore[arg-type]
        self._state_WSMF[:, slot] = torch.tensor(blank)
        self._state_WSMF[:, slot, :, -1] = self._rules.columns.text_state_G[self.rule_SM[slot]]

    def deferred(self) -> list[int]:
        """Injections of each slot that had to wait; copies to the host."""
        n_deferred_WS = self._state_WSMF[..., RuleState._fields.index("n_deferred")].sum(dim=2)
        latest_S = self._tag_WS.argmax(dim=0, keepdim=True)
        return [int(n) for n in n_deferred_WS.gather(0, latest_S)[0].tolist()]

    def is_waiting(self, slot_K: Tensor) -> Tensor:
        """bool [K]: rows in which some rule still owes an injection."""
        latest_K = self._tag_WS[:, slot_K].argmax(dim=0)
        return (self._state_WSMF[latest_K, slot_K, :, 0] > 0).any(dim=1)

    def begin(self, slot_K: Tensor, position_K: Tensor, last_token_K: Tensor | None) -> Pending:
        """Finds the rows' states before this position.

        Args:
            slot_K: int64 slots.
            position_K: int64 positions about to be sampled.
            last_token_K: int64 tokens at the positions before; None: no rule reads text.
        """
        tag_WK = self._tag_WS[:, slot_K]
        latest_K = tag_WK.masked_fill(tag_WK > position_K, _LONG_AGO).argmax(dim=0)
        before = RuleState(*self._state_WSMF[latest_K, slot_K].unbind(-1))
        rule_KM, columns = self.rule_SM[slot_K], self._rules.columns
        position_K1 = position_K[:, None]
        text_KM = before.text
        if last_token_K is not None:
            next_XV = self._rules.automata.next_XV
            reads_KM = (text_KM >= 0) & (position_K1 > 0)
            read_KM = next_XV[text_KM.clamp(min=0), last_token_K[:, None]]
            text_KM = torch.where(reads_KM, read_KM.long(), text_KM)
        is_over_KM = position_K1 > before.nominal + columns.defer_G[rule_KM]
        now = before._replace(owed=before.owed.masked_fill(is_over_KM, 0), text=text_KM)
        in_burst_KM = (now.owed > 0) & (now.nominal == position_K1)
        is_cool_KM = position_K1 - now.last > columns.cooldown_G[rule_KM]
        is_left_KM = now.n_injected < columns.max_injections_G[rule_KM]
        return Pending(
            slot_K,
            position_K,
            rule_KM,
            before,
            now,
            may_start_KM=is_cool_KM & is_left_KM & ~in_burst_KM,
            is_again_K=(tag_WK > position_K).any(dim=0),
        )

    def positional_hits(self, pending: Pending) -> Tensor:
        """bool [K, M]: the rules that fire by seed and position, worked out on the device."""
        firing, rule_KM = self._rules.columns.firing, pending.rule_KM
        position_KM = pending.position_K[:, None].expand_as(rule_KM)
        seed_KM = self.seed_S[pending.slot_K][:, None].expand_as(rule_KM)
        index_M = torch.arange(rule_KM.shape[1], device=self._device)
        every_KM = firing.every_G[rule_KM]
        hits_KM = (every_KM > 0) & periodic_hits(
            seed_KM,
            index_M,
            position_KM,
            start=firing.start_G[rule_KM],
            every=every_KM.clamp(min=1),
            jitter=firing.jitter_G[rule_KM],
        )
        hits_KM |= bernoulli_hits(seed_KM, index_M, position_KM, firing.rate_G[rule_KM])
        hits_KM |= (firing.at_GA[rule_KM] == position_KM[..., None]).any(dim=-1)
        return hits_KM & self.in_range(pending)

    def in_range(self, pending: Pending) -> Tensor:
        """bool [K, M]: the rules whose start and stop enclose the position."""
        firing, rule_KM = self._rules.columns.firing, pending.rule_KM
        return is_in_range(
            pending.position_K[:, None], firing.start_G[rule_KM], firing.stop_G[rule_KM]
        )

    def settle(self, pending: Pending, fires_KM: Tensor) -> tuple[Pending, Tensor]:
        """Takes in this position's firings.

        Args:
            pending: Rows at this step.
            fires_KM: bool, the rules that fire here.

        Returns:
            The rows with the firings noted, and int64 [K], the index of the rule that is due in
            each row, M where none is.
        """
        now, rule_KM, position_K1 = pending.now, pending.rule_KM, pending.position_K[:, None]
        columns = self._rules.columns
        starts_KM = fires_KM & pending.may_start_KM
        rule_M = torch.arange(rule_KM.shape[1], device=self._device)
        is_due_KM = starts_KM | (now.owed > 0)
        winner_K = torch.where(is_due_KM, rule_M, len(rule_M)).amin(dim=1)
        # A firing behind the winner is lost: the first that is due wins the step.
        starts_KM &= rule_M <= winner_K[:, None]
        left_KM = columns.max_injections_G[rule_KM] - now.n_injected
        fired_KM = torch.minimum(columns.burst_G[rule_KM], left_KM)
        now = now._replace(
            owed=torch.where(starts_KM, fired_KM, now.owed),
            nominal=torch.where(starts_KM, position_K1, now.nominal),
        )
        return pending._replace(now=now), winner_K

    def finish(self, pending: Pending, winner_K: Tensor, is_injected_K: Tensor) -> None:
        """Writes down what became of the due rules: injected, or left waiting.

        Args:
            pending: Rows, settled.
            winner_K: int64 index of the due rule, M where none is.
            is_injected_K: bool; False leaves a due injection waiting.
        """
        now, position_K1 = pending.now, pending.position_K[:, None]
        rule_M = torch.arange(pending.rule_KM.shape[1], device=self._device)
        is_winner_KM = rule_M == winner_K[:, None]
        done_KM = is_winner_KM & is_injected_K[:, None]
        waits_KM = is_winner_KM & ~is_injected_K[:, None]
        may_wait_KM = self._rules.columns.defer_G[pending.rule_KM] > 0
        begins_to_wait_KM = waits_KM & may_wait_KM & (now.nominal == position_K1)
        after = now._replace(
            owed=now.owed - done_KM.long(),
            nominal=torch.where(done_KM, position_K1 + 1, now.nominal),
            last=torch.where(done_KM, position_K1, now.last),
            n_injected=now.n_injected + done_KM.long(),
            n_deferred=now.n_deferred + begins_to_wait_KM.long(),
        )
        self._store(pending, after)

    def _store(self, pending: Pending, after: RuleState) -> None:
        slot_K, position_K = pending.slot_K, pending.position_K
        # States behind this step's were made from tokens that did not stay.
        tag_WK = self._tag_WS[:, slot_K]
        self._tag_WS[:, slot_K] = tag_WK.masked_fill(tag_WK > position_K + 1, _LONG_AGO)
        for state, tag_K in ((pending.before, position_K), (after, position_K + 1)):
            kept_K = tag_K % self._n_kept
            self._tag_WS[kept_K, slot_K] = tag_K
            self._state_WSMF[kept_K, slot_K] = torch.stack(state, dim=-1)

    def _make_room(self, n_slots: int, n_rules: int) -> None:
        slots, rules = self.rule_SM.shape
        more_slots = 0 if n_slots <= slots else max(64, slots, n_slots - slots)
        more_rules = max(0, n_rules - rules)
        if not more_slots and not more_rules:
            return
        pad = torch.nn.functional.pad
        self.seed_S = pad(self.seed_S, (0, more_slots))
        self.siblings_seed_S = pad(self.siblings_seed_S, (0, more_slots))
        self.sibling_S = pad(self.sibling_S, (0, more_slots))
        self.base_S = pad(self.base_S, (0, more_slots), value=-1)
        self.rule_SM = pad(self.rule_SM, (0, more_rules, 0, more_slots))
        self._tag_WS = pad(self._tag_WS, (0, more_slots))
        self._state_WSMF = pad(self._state_WSMF, (0, 0, 0, more_rules, 0, more_slots))
