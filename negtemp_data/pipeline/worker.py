"""Makes and commits whole shards on one engine, several at a time.

A plain class that runs without Ray. Whatever happens to its process, what it has finished is in the
output: rows every few seconds, shards at once.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from negtemp_data.errors import NegtempError, StorageError
from negtemp_data.jobspec import Job
from negtemp_data.pipeline.maker import Earlier, Row, ShardMaker
from negtemp_data.pipeline.progress import ArmCounts, RowCounts, Work
from negtemp_data.pipeline.reasons import count_reasons
from negtemp_data.pipeline.reuse import OldRows
from negtemp_data.pipeline.suspects import Care
from negtemp_data.prompts import Prompt, planned_ids, prompts_per_shard, read_shard
from negtemp_data.storage import (
    Output,
    WipWriter,
    build_shard,
    commit_shard,
    describe_shard,
    read_wip,
    write_entry,
)

_KEEP_EVERY_S = 2.0
"""Seconds between two writings of finished rows; those of one are what a crash can cost."""

_GIVEN_UP = "the engine died twice while it worked on this row alone"


class Watch(Protocol):
    """Who is told what is in flight, so that it knows when this process dies."""

    def begin(self, shard: int) -> Care | None:
        """A shard begins; returns what to mind, if anything."""

    def run_group(self, row_ids: Sequence[str]) -> None:
        """A group of suspects has the engine to itself; an empty one: it is done."""

    def end(self, shard: int) -> None:
        """A shard is made."""

    def kept(self) -> None:
        """Rows were kept: the run moves on."""

    def generated(self, row: Row) -> None:
        """A row was generated, in one of its attempts."""

    def made(self, row: Row) -> None:
        """A row got its verdict."""


class _OpenShard:
    """A shard under way: its counts, and where its rows are kept."""

    def __init__(
        self,
        output: Output,
        shard: int,
        arms: Iterable[str],
        count_generated: Callable[[Row], None],
        count_made: Callable[[Row], None],
    ) -> None:
        self.counts: ArmCounts = {arm: RowCounts() for arm in arms}
        self._count_generated, self._count_made = count_generated, count_made
        self._unverified: set[str] = set()
        self._wip = WipWriter(output, shard)
        self._lock = threading.Lock()
        self._failure: NegtempError | None = None

    def take(self, earlier: Earlier) -> None:
        """Counts rows that exist already."""
        for row in earlier.done.values():
            self.counts[row["arm"]].add_row(row)
        for row in earlier.generated.values():
            self._add_unverified(row)

    def on_generated(self, row: Row) -> None:
        self._check()
        self._wip.add(row)
        with self._lock:
            self._add_unverified(row)
        self._count_generated(row)

    def on_done(self, row: Row) -> None:
        self._check()
        self._wip.add(row)
        counts = self.counts[row["arm"]]
        with self._lock:
            counts.add_row(row)
            if row["id"] in self._unverified:
                self._unverified.remove(row["id"])
                counts.unverified -= 1
        self._count_made(row)

    def keep(self) -> int:
        """Writes what is new; an error is raised by the next row, in the shard's own thread."""
        try:
            return self._wip.flush()
        except NegtempError as error:
            self._failure = error
            return 0

    def discard(self) -> None:
        """Removes what was kept."""
        self._wip.discard()

    def _add_unverified(self, row: Row) -> None:
        if row["id"] not in self._unverified:  # else it is another attempt
            self._unverified.add(row["id"])
            self.counts[row["arm"]].unverified += 1

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


class Worker:
    """One engine's share of a run; `make` may be called from several threads."""

    def __init__(
        self,
        job: Job,
        output: Output,
        maker: ShardMaker,
        old_rows: OldRows | None,
        watch: Watch,
        n_threads: int,
    ) -> None:
        """Starts the thread that keeps finished rows.

        Args:
            job: The job.
            output: Where to.
            maker: Makes rows on the engine.
            old_rows: Rows of an older output that need not be generated again.
            watch: Told what is in flight.
            n_threads: Most threads that call `make` at a time.
        """
        self._job, self._output, self._maker = job, output, maker
        self._old_rows = old_rows
        self._watch = watch
        self._turns = threading.Semaphore(n_threads)
        self._n_threads = n_threads
        self._taking_all = threading.Lock()
        self._open: dict[int, _OpenShard] = {}
        self._work = Work()
        self._work_lock = threading.Lock()
        threading.Thread(target=self._keep_rows, name="keep rows", daemon=True).start()

    @property
    def counts(self) -> dict[int, ArmCounts]:
        """Rows of the shards under way."""
        return {shard: opened.counts for shard, opened in dict(self._open).items()}

    @property
    def work(self) -> Work:
        """What was made since the start."""
        with self._work_lock:
            return self._work + Work()  # a copy

    def make(self, shard: int) -> None:
        """Makes what is missing of a shard, and commits it.

        Raises:
            EngineDeadError: The engine died; what was finished is kept.
            NegtempError: The run can't go on.
        """
        if self._output.is_committed(shard):
            return
        arms = self._job.generate.samples
        opened = _OpenShard(self._output, shard, arms, self._count_generated, self._count_made)
        self._open[shard] = opened
        try:
            begun = time.monotonic()
            rows = self._make_rows(shard, opened)
            seconds = time.monotonic() - begun
            self._commit(shard, rows, seconds)
            opened.discard()
        except StorageError:
            # Another worker that was taken for dead may have been faster, and cleaned up.
            if not self._output.is_committed(shard):
                raise
        finally:
            del self._open[shard]

    def _count_generated(self, row: Row) -> None:
        with self._work_lock:
            self._work.tokens += row["completion_tokens"]
        self._watch.generated(row)

    def _count_made(self, row: Row) -> None:
        with self._work_lock:
            self._work.rows[row["arm"]] += 1
        self._watch.made(row)

    def _make_rows(self, shard: int, opened: _OpenShard) -> list[Row]:
        prompts = read_shard(self._output.run, shard)
        earlier = self._read_earlier(shard, prompts)
        opened.take(earlier)
        care = self._watch.begin(shard)
        if care is not None:
            earlier = self._make_with_care(prompts, opened, earlier, care)
        with self._turn():
            rows = self._maker.make(prompts, opened, earlier)
        self._watch.end(shard)
        return rows

    def _read_earlier(self, shard: int, prompts: Sequence[Prompt]) -> Earlier:
        wip = read_wip(self._output, shard)
        if wip.damaged:
            self._output.append_event("wip_damaged", shard=shard, files=wip.damaged)
        generated = dict(wip.generated)
        if self._old_rows is not None:
            old = self._old_rows.of(shard * prompts_per_shard(self._job), prompts)
            samples = self._job.generate.samples
            planned = (row.id for prompt in prompts for row in planned_ids(prompt.id, samples))
            generated |= {
                row_id: old[row_id]
                for row_id in planned
                if row_id in old and row_id not in wip.done and row_id not in generated
            }
        return Earlier(wip.done, generated)

    def _make_with_care(
        self, prompts: Sequence[Prompt], opened: _OpenShard, earlier: Earlier, care: Care
    ) -> Earlier:
        """Makes all rows in groups that have the engine to themselves; returns them as done."""
        done = dict(earlier.done)
        control = self._job.control_arm
        left = []
        for prompt in prompts:
            planned = list(planned_ids(prompt.id, self._job.generate.samples))
            for row in sorted(planned, key=lambda row: row.arm != control):  # twins first
                if row.id in care.given_up:
                    generated = earlier.generated.get(row.id)
                    done[row.id] = self._maker.fail(prompt, row.id, _GIVEN_UP, generated)
                    opened.on_done(done[row.id])
                    self._output.append_event("row_given_up", row=row.id, reason=_GIVEN_UP)
                elif row.id not in done:
                    left.append(row.id)
        for group in care.groups(left):
            with self._all_turns():
                self._watch.run_group(group)
                known = Earlier(done, earlier.generated)
                made = self._maker.make(prompts, opened, known, frozenset(group))
                self._watch.run_group(())
            opened.keep()  # before the next group can take the process along
            done |= {row["id"]: row for row in made}
        return Earlier(done)

    def _commit(self, shard: int, rows: Sequence[Row], seconds: float) -> None:
        table = build_shard(shard, rows, self._job.output.keep, seconds)
        is_first = commit_shard(self._output, shard, table)
        write_entry(self._output, describe_shard(self._output, shard))
        reasons = count_reasons(rows)
        if is_first and reasons:
            self._output.append_event("rows_failed", shard=shard, reasons=reasons)

    def _keep_rows(self) -> None:
        while True:
            time.sleep(_KEEP_EVERY_S)
            if sum(opened.keep() for opened in list(self._open.values())):
                self._watch.kept()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._taking_all:  # whoever waits for all turns gets them before newcomers get one
            self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    @contextmanager
    def _all_turns(self) -> Iterator[None]:
        """The engine for this thread alone."""
        with self._taking_all:
            for _ in range(self._n_threads):
                self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release(self._n_threads)
