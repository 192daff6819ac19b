"""What schedules need of a model's tokens, worked out once for each that is seen."""

import torch

from negtemp_data.sampling.base import BaseTable
from negtemp_data.sampling.columns import NO_BASE
from negtemp_data.sampling.masks import MaskTable
from negtemp_data.sampling.records import Schedule
from negtemp_data.sampling.rules import RuleTable
from negtemp_data.sampling.vocabulary import TokenTable


class ScheduleTables:
    """The vocabularies, rules and bases of all schedules seen so far."""

    def __init__(self, tokens: TokenTable, vocab_size: int, device: torch.device) -> None:
        """Starts empty, for logits of width `vocab_size` on `device`."""
        self.masks = MaskTable(tokens, vocab_size, device)
        self.rules = RuleTable(tokens, vocab_size, device, self.masks)
        self.bases = BaseTable(device, self.masks)

    def register(self, schedule: Schedule) -> tuple[list[int], int]:
        """Indices of the schedule's rules, and of its base, or `NO_BASE`.

        Raises:
            ValueError: The schedule can't be carried out with this model's tokens.
        """
        indices = [self.rules.register(rule) for rule in schedule.rules]
        return indices, self.bases.register(schedule.base) if schedule.base else NO_BASE
