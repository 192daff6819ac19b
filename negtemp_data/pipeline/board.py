"""Where workers report to and the driver looks; an actor's plain class."""

import time

from negtemp_data.engine.steps import StepLog
from negtemp_data.pipeline.progress import RowCounts, Tally
from negtemp_data.pipeline.suspects import Care, Suspects


class Board:
    """Counts, engine starts, and what was in flight when an engine died."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._tally = Tally()
        self._suspects = Suspects()

    def engine_starts(self, worker: str) -> int:
        """Notes that a worker starts an engine; returns starts since the run last moved on."""
        narrowed = self._suspects.died(worker)
        self._tally.starts_in_vain = 1 if narrowed else self._tally.starts_in_vain + 1
        return self._tally.starts_in_vain

    def engine_ready(self) -> None:
        """Notes that an engine takes requests."""
        self._tally.ready_at = self._tally.ready_at or time.time()

    def report(
        self, process: str, shards: dict[int, RowCounts], tokens: int, steps: StepLog
    ) -> None:
        """Replaces the counts of shards, and a process's tokens and what its steps have cost."""
        self._tally.shards |= shards
        self._tally.tokens[process] = tokens
        self._tally.steps[process] = steps

    def begin(self, worker: str, shard: int) -> Care | None:
        """See `Suspects.begin`."""
        return self._suspects.begin(worker, shard)

    def run_group(self, worker: str, row_ids: list[str]) -> None:
        """See `Suspects.run_group`."""
        self._suspects.run_group(worker, row_ids)

    def end(self, worker: str, shard: int) -> None:
        """See `Suspects.end`."""
        self._suspects.end(worker, shard)

    def kept(self) -> None:
        """Notes that the run moves on."""
        self._tally.starts_in_vain = 0

    def committed(self, shard: int) -> None:
        """Notes that a shard is committed, and that the run moves on."""
        self._tally.shards.pop(shard, None)
        self._tally.starts_in_vain = 0

    def read(self) -> Tally:
        """All that is known."""
        return self._tally
