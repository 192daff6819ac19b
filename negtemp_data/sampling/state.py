"""What each row's rules remember from step to step, on the device.

A step may be computed again: a chunk of a prefill, or a draft token that was not accepted. So the
states before the last few positions of each slot are kept, each with the position that it stands
before, and a step begins from the one before its own position. States behind it were made from
tokens that did not stay.

Shapes: S slots, M rules of the longest schedule, W kept states of a slot, C columns. Slot 0 is
nobody's: rows of no request may point to it.
"""

import torch
from torch import Tensor

from negtemp_data.sampling.columns import NO_BASE, RowNumber, RuleNumber, StateNumber
from negtemp_data.sampling.records import Siblings
from negtemp_data.sampling.rules import RuleTable

LONG_AGO = -(2**40)


class RowStates:
    """The states of all slots."""

    def __init__(self, rules: RuleTable, device: torch.device, n_kept: int) -> None:
        """Starts with no slots but slot 0; `open` makes room.

        Args:
            rules: Where the slots' rules are registered.
            device: Where the states live.
            n_kept: Most rows that a request has in a step, and one more.
        """
        self.rules = rules

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.row_SC = zeros(1, len(RowNumber))
        """int64, columns `RowNumber`."""
        self.row_SC[0, RowNumber.BASE] = NO_BASE
        self.rule_SM = zeros(1, 1)
        """int64 registered rules; 0 behind a slot's last."""
        self.tag_WS = zeros(n_kept, 1)
        """int64: the position that a kept state stands before."""
        self.state_WSMC = zeros(n_kept, 1, 1, len(StateNumber))
        """int64, columns `StateNumber`."""

    def open(
        self,
        slot: int,
        request: int,
        seed: int,
        rule_indices: list[int],
        base: int,
        siblings: Siblings | None,
    ) -> None:
        """Begins a row in `slot` with these registered rules and this registered base."""
        self._make_room(slot + 1, len(rule_indices))
        row = {
            RowNumber.SEED: seed,
            RowNumber.SIBLINGS_SEED: siblings.seed if siblings else 0,
            RowNumber.SIBLING: siblings.index if siblings else 0,
            RowNumber.REQUEST: request,
            RowNumber.BASE: base,
        }
        self.row_SC[slot] = torch.tensor([row[column] for column in RowNumber])
        self.rule_SM[slot] = 0
        self.rule_SM[slot, : len(rule_indices)] = torch.tensor(rule_indices, dtype=torch.int64)
        self.tag_WS[:, slot] = LONG_AGO
        state_MC = torch.zeros(self.rule_SM.shape[1], len(StateNumber), dtype=torch.int64)
        state_MC[:, StateNumber.LAST] = LONG_AGO
        self.state_WSMC[:, slot] = state_MC.to(self.state_WSMC.device)
        start_G = self.rules.number_GC[:, RuleNumber.TEXT_STATE]
        self.state_WSMC[:, slot, :, StateNumber.TEXT] = start_G[self.rule_SM[slot]]

    def deferred(self, length_S: Tensor) -> list[int]:
        """Injections of each slot that had to wait before these positions; copies to the host.

        A state may be of a later one only if so many steps went on behind it that none before it
        is kept.
        """
        n_deferred_WS = self.state_WSMC[..., StateNumber.N_DEFERRED].sum(dim=2)
        is_within_WS = self.tag_WS <= length_S
        latest_S = torch.where(is_within_WS, self.tag_WS, LONG_AGO - self.tag_WS).argmax(dim=0)[
            None
        ]
        return [int(n) for n in n_deferred_WS.gather(0, latest_S)[0].tolist()]

    def _make_room(self, n_slots: int, n_rules: int) -> None:
        slots, rules = self.rule_SM.shape
        more_slots = 0 if n_slots <= slots else max(64, slots, n_slots - slots)
        more_rules = max(0, n_rules - rules)
        if not more_slots and not more_rules:
            return
        pad = torch.nn.functional.pad
        self.row_SC = pad(self.row_SC, (0, 0, 0, more_slots))
        self.rule_SM = pad(self.rule_SM, (0, more_rules, 0, more_slots))
        self.tag_WS = pad(self.tag_WS, (0, more_slots))
        self.state_WSMC = pad(self.state_WSMC, (0, 0, 0, more_rules, 0, more_slots))
