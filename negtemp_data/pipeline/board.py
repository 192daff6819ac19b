"""Where workers report to and the driver looks; an actor's plain class."""

import time
from collections import Counter

from negtemp_data.engine.steps import StepLog
from negtemp_data.pipeline.progress import ArmCounts, Tally, Work
from negtemp_data.pipeline.suspects import Care, Suspects

_LONGEST_PAUSE_S = 30.0
_REPORT_EVERY_S = 0.5
_REPORTS_PER_S = 200
"""Most reports of all processes together: a seventh of what the board took when it was measured."""


def report_pause_s(n_processes: int) -> float:
    """Seconds between two reports of one of so many processes."""
    return max(_REPORT_EVERY_S, n_processes / _REPORTS_PER_S)


def restart_pause_s(n_in_vain: float) -> float:
    """Seconds to wait before an engine's start that follows so many in vain."""
    return min(_LONGEST_PAUSE_S, 2.0**n_in_vain) if n_in_vain > 0 else 0.0


class Board:
    """Counts, engine starts, and what was in flight when an engine died."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._tally = Tally()
        self._suspects = Suspects()
        self._processes: dict[str, str] = {}
        self._judge_starts: Counter[str] = Counter()

    def engine_starts(self, worker: str, process: str) -> tuple[int, str | None]:
        """Notes that a worker starts an engine.

        Returns:
            Starts since the run last moved on, and the process that this one replaces, if any.
        """
        self._tally.starting.add(worker)
        self._tally.engine_starts += 1
        self._tally.starts_in_vain += 1
        replaced = self._processes.get(worker)
        self._processes[worker] = process
        return self._tally.starts_in_vain, replaced

    def engine_ready(self, worker: str) -> None:
        """Notes that a worker's engine takes requests."""
        self._tally.starting.discard(worker)
        self._tally.engines.add(worker)
        self._tally.moves += 1
        self._tally.ready_at = self._tally.ready_at or time.time()

    def report(self, process: str, shards: dict[int, ArmCounts], work: Work) -> None:
        """Replaces the counts of shards, and the work of a process."""
        self._tally.shards |= shards
        self._tally.work[process] = work

    def judge_starts(self, replica: str) -> tuple[int, str | None]:
        """Notes that a judge's replica starts an engine.

        Returns:
            Its starts since its last step, and why it has given up, if it has.
        """
        self._judge_starts[replica] += 1
        return self._judge_starts[replica], self._tally.judge_failures.get(replica)

    def judge_failed(self, replica: str, reason: str) -> None:
        """Notes that a judge's replica has given up."""
        self._tally.judge_failures[replica] = reason

    def report_judge(self, replica: str, process: str, steps: StepLog) -> None:
        """Notes that a judge's process lives, and replaces what its steps have cost."""
        if steps.steps:
            del self._judge_starts[replica]
        self._tally.judges[process] = steps
        self._tally.judges_seen_at[replica] = time.monotonic()

    def begin(self, worker: str, shard: int) -> Care | None:
        """See `Suspects.begin`."""
        return self._suspects.begin(worker, shard)

    def run_group(self, worker: str, row_ids: list[str]) -> None:
        """See `Suspects.run_group`."""
        self._suspects.run_group(worker, row_ids)

    def end(self, worker: str, shard: int) -> None:
        """See `Suspects.end`."""
        self._suspects.end(worker, shard)

    def died(self, worker: str) -> None:
        """Notes that a worker is gone, before another one begins what it had in flight."""
        self._tally.starting.discard(worker)
        self._tally.engines.discard(worker)
        if self._suspects.died(worker):  # a smaller group of suspects is progress
            self._tally.starts_in_vain = 0

    def kept(self) -> None:
        """Notes that the run moves on."""
        self._tally.moves += 1
        self._tally.starts_in_vain = 0

    def committed(self, shard: int) -> None:
        """Notes that a shard is committed, and that the run moves on."""
        self._tally.shards.pop(shard, None)
        self.kept()

    def read(self) -> Tally:
        """All that is known."""
        return self._tally
