"""Counts of a run under way, from the engines' processes to the screen."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from negtemp_data.engine.steps import StepLog


@dataclass
class RowCounts:
    """Rows of one shard, or of many, that are made."""

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    unverified: int = 0
    """Rows that are generated and wait for their verdict."""

    @property
    def rows(self) -> int:
        """Rows that are done."""
        return self.accepted + self.rejected + self.failed

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Counts a row that is done."""
        setattr(self, row["status"], getattr(self, row["status"]) + 1)

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.failed + other.failed,
            self.unverified + other.unverified,
        )


ArmCounts = dict[str, RowCounts]
"""Rows by arm."""


def add_arms(parts: Iterable[Mapping[str, RowCounts]]) -> ArmCounts:
    """Adds up counts, arm by arm."""
    total: ArmCounts = {}
    for part in parts:
        for arm, counts in part.items():
            total[arm] = total.get(arm, RowCounts()) + counts
    return total


@dataclass
class Work:
    """What a process, or all together, have done; it only grows."""

    tokens: int = 0
    """Generated tokens."""
    rows: Counter[str] = field(default_factory=Counter)
    """Rows that got their verdict, by arm."""
    steps: StepLog = field(default_factory=StepLog)
    """What the engine's steps have cost; they are the sign of life of rows that take long."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.rows + other.rows, self.steps + other.steps)


@dataclass(frozen=True)
class Progress:
    """What a display shows."""

    planned_rows: int
    planned_shards: int
    committed_shards: int
    earlier_rows: int
    """Rows of shards that earlier runs committed."""
    made: RowCounts
    """Rows of this run's shards, those of unfinished ones included."""
    tokens: int
    """Tokens that this run has generated."""
    judge_tokens: int
    """Tokens that judges' engines of their own have read."""
    seconds: float
    """Since the first engine was ready; 0 before."""


@dataclass
class Tally:
    """What workers report."""

    shards: dict[int, ArmCounts] = field(default_factory=dict)
    """Rows of shards that are not committed."""
    work: dict[str, Work] = field(default_factory=dict)
    """What each process has done, those that are gone included."""
    engines: set[str] = field(default_factory=set)
    """Workers whose engine takes requests, as far as is known."""
    engine_starts: int = 0
    """Engine starts, all together."""
    starts_in_vain: int = 0
    """Engine starts since the run last moved on."""
    moves: int = 0
    """Times that rows were kept, a shard was committed, or an engine became ready."""
    ready_at: float | None = None
    """Time (seconds since the epoch) at which the first engine was ready."""
    starting: set[str] = field(default_factory=set)
    """Workers whose engines are being started."""
    judges: dict[str, StepLog] = field(default_factory=dict)
    """What the steps of each judge's process have cost, those that are gone included."""
    judges_seen_at: dict[str, float] = field(default_factory=dict)
    """Time of the last word from each replica of a judge; monotonic, which is one clock for all
    processes of the driver's machine and does not jump."""

    judge_failures: dict[str, str] = field(default_factory=dict)
    """Why replicas of judges have given up, by replica."""

    @property
    def total(self) -> Work:
        """What all processes have done."""
        return sum(self.work.values(), Work())

    @property
    def judge_steps(self) -> StepLog:
        """What the steps of judges' engines of their own have cost."""
        return sum(self.judges.values(), StepLog())

    def rows_of(self, shards: Iterable[int]) -> ArmCounts:
        """Rows of some of the shards."""
        return add_arms(self.shards[shard] for shard in shards)
