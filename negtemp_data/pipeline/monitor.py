"""What a run says of itself while it goes on: to its reporter, in its snapshot, in its events.

A plain class that runs without Ray. The run tells it of commits, and has it look at the workers'
tally about twice a second, from another thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, replace
from typing import NamedTuple, Protocol

from negtemp_data.errors import NegtempError
from negtemp_data.pipeline.progress import ArmCounts, Progress, RowCounts, Tally, Work, add_arms
from negtemp_data.pipeline.snapshot import WRITE_EVERY_S, ArmSnapshot, Snapshot, write_snapshot
from negtemp_data.pipeline.stall import Stage, StallWatch, Standstill, find_stage
from negtemp_data.prompts import Plan
from negtemp_data.storage import Output, ShardEntry

_LATELY_S = 30.0
"""What `lately` means in rates."""

_WHERE = {
    Stage.STARTING: "worker-*.log in {logs} says what the engines wait for",
    Stage.GENERATING: "worker-*.log in {logs} says what the engines did last",
    Stage.JUDGING: "judge-*.log in {logs} says what the judges did last",
    Stage.WRITING: "see whether the storage of {root} answers",
    Stage.HANDING_OUT: "see whether the machine or cluster has CPUs to spare",
}


class Reporter(Protocol):
    """Who a run tells of itself."""

    def note(self, text: str) -> None:
        """Something that takes long begins."""

    def progress(self, progress: Progress) -> None:
        """The counts have moved; called about twice a second, from a thread of its own."""

    def warn(self, text: str) -> None:
        """Something is wrong, and the run goes on; called from that thread too."""


class _Past(NamedTuple):
    at: float
    work: Work
    judge_tokens: int


class _Rates(NamedTuple):
    tokens_per_s: float
    judge_tokens_per_s: float
    rows_per_s: dict[str, float]
    """By arm."""


class Monitor:
    """Adds up what is committed and what is under way."""

    def __init__(
        self,
        output: Output,
        plan: Plan,
        earlier: Collection[ShardEntry],
        reporter: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with the shards that earlier runs committed."""
        self._output, self._plan, self._reporter, self._clock = output, plan, reporter, clock
        self._lock = threading.Lock()
        self._earlier = add_arms(map(_rows_of, earlier))
        self._n_earlier = len(earlier)
        self._made: ArmCounts = {}
        self._committed: set[int] = set()
        """Shards of this run."""
        self._tally = Tally()
        self._past: deque[_Past] = deque()
        self._stalls = StallWatch(clock)
        self._write_at = clock()

    def commit(self, entry: ShardEntry) -> None:
        """Counts a shard that this run has committed."""
        with self._lock:
            self._committed.add(entry.shard)
            self._made = add_arms([self._made, _rows_of(entry)])

    def look(self, tally: Tally) -> None:
        """Takes what the workers have reported, and tells of it."""
        with self._lock:
            self._tally = tally
            now = self._clock()
            self._past.append(_Past(now, tally.total, tally.judge_steps.prompt_tokens))
            while now - self._past[0].at > _LATELY_S:
                self._past.popleft()
            progress, snapshot = self._progress(), self._snapshot()
        self._reporter.progress(progress)
        signs = (tally.moves, tally.total.steps.steps, tally.judge_steps.steps)
        standstill = self._stalls.observe(signs, Stage(snapshot.stage))
        if standstill is not None:
            self._tell(standstill, snapshot)
        if now >= self._write_at:
            self._write_at = now + WRITE_EVERY_S
            with suppress(NegtempError):  # the worker that can't write either stops the run
                write_snapshot(self._output, snapshot)

    def end(self) -> None:
        """Writes the last snapshot."""
        with self._lock, suppress(NegtempError):
            write_snapshot(self._output, replace(self._snapshot(), is_over=True))

    def _open_shards(self) -> list[int]:
        """Shards under way; committed ones may still be reported."""
        return [shard for shard in self._tally.shards if shard not in self._committed]

    def _made_and_open(self) -> ArmCounts:
        return add_arms([self._made, self._tally.rows_of(self._open_shards())])

    def _progress(self) -> Progress:
        ready_at = self._tally.ready_at
        return Progress(
            planned_rows=self._plan.n_rows,
            planned_shards=self._plan.n_shards,
            committed_shards=self._n_earlier + len(self._committed),
            earlier_rows=sum(counts.rows for counts in self._earlier.values()),
            made=sum(self._made_and_open().values(), RowCounts()),
            tokens=self._tally.total.tokens,
            judge_tokens=self._tally.judge_steps.prompt_tokens,
            seconds=time.time() - ready_at if ready_at else 0.0,
        )

    def _snapshot(self) -> Snapshot:
        open_shards = self._open_shards()
        open_rows = sum(self._tally.rows_of(open_shards).values(), RowCounts())
        n_open = sum(map(self._plan.rows_of, open_shards))
        rows = add_arms([self._earlier, self._made_and_open()])
        lately = self._lately()
        return Snapshot(
            time=time.time(),
            stage=find_stage(len(self._tally.engines), n_open, open_rows),
            still_s=round(self._stalls.still_s, 1),
            planned_shards=self._plan.n_shards,
            committed_shards=self._n_earlier + len(self._committed),
            open_rows=n_open,
            arms={
                arm: ArmSnapshot(
                    **asdict(rows.get(arm, RowCounts())),
                    planned=self._plan.n_prompts * n_samples,
                    rows_per_s=lately.rows_per_s.get(arm, 0.0),
                )
                for arm, n_samples in self._plan.samples.items()
            },
            tokens=self._tally.total.tokens,
            tokens_per_s=lately.tokens_per_s,
            judge_tokens=self._tally.judge_steps.prompt_tokens,
            judge_tokens_per_s=lately.judge_tokens_per_s,
            engines=len(self._tally.engines),
            starts_in_vain=self._tally.starts_in_vain,
        )

    def _lately(self) -> _Rates:
        if len(self._past) < 2:
            return _Rates(0.0, 0.0, {})
        first, last = self._past[0], self._past[-1]
        seconds = last.at - first.at
        rows = last.work.rows - first.work.rows
        return _Rates(
            round((last.work.tokens - first.work.tokens) / seconds, 1),
            round((last.judge_tokens - first.judge_tokens) / seconds, 1),
            {arm: round(n / seconds, 2) for arm, n in rows.items()},
        )

    def _tell(self, standstill: Standstill, snapshot: Snapshot) -> None:
        stage, seconds = standstill.stage.value, round(standstill.seconds)
        with suppress(NegtempError):
            if standstill.is_over:
                self._output.append_event("goes_on", stage=stage, seconds=seconds)
                return
            self._output.append_event(
                "stalled",
                stage=stage,
                seconds=seconds,
                open_rows=snapshot.open_rows,
                unverified=snapshot.total.unverified,
                engines=snapshot.engines,
            )
        where = _WHERE[standstill.stage].format(logs=self._output.logs, root=self._output.root)
        self._reporter.warn(
            f"the run has stood still for {seconds} s at this stage: {stage} ({snapshot.engines} "
            f"engines ready, {snapshot.open_rows} rows under way, {snapshot.total.unverified} of "
            f"them to verify). It goes on waiting: {where}; Ctrl-C and `negtemp resume "
            f"{self._output.root}` lose nothing."
        )


def _rows_of(entry: ShardEntry) -> ArmCounts:
    return {arm: RowCounts(**counts) for arm, counts in entry.counts.items()}
