"""Counts of a run under way, from the engines' processes to the screen."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RowCounts:
    """Rows that one worker, or all, have made in this run."""

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    tokens: int = 0
    """Tokens that this run generated for them, all attempts together."""

    @property
    def rows(self) -> int:
        """All rows."""
        return self.accepted + self.rejected + self.failed

    def add_row(self, row: dict[str, Any], n_tokens: int) -> None:
        """Counts a row, for which this run generated so many tokens."""
        setattr(self, row["status"], getattr(self, row["status"]) + 1)
        self.tokens += n_tokens

    def __add__(self, other: "RowCounts") -> "RowCounts":
        mine, theirs = asdict(self), asdict(other)
        return RowCounts(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class Progress:
    """What a display shows."""

    planned_rows: int
    planned_shards: int
    committed_shards: int
    earlier_rows: int
    """Rows of shards that earlier runs committed."""
    made: RowCounts
    """Rows made by this run, those of unfinished shards included."""
    seconds: float
    """Since the first engine was ready; 0 before."""


@dataclass
class Tally:
    """What workers report: the counts of each, and how often engines had to be started."""

    counts: dict[str, RowCounts] = field(default_factory=dict)
    starts_since_commit: int = 0
    ready_at: float | None = None
    """Time (seconds since the epoch) at which the first engine was ready."""

    @property
    def total(self) -> RowCounts:
        """Counts of all workers."""
        return sum(self.counts.values(), RowCounts())
