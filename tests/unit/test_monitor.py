"""What a run says of itself while it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from negtemp_data.engine.steps import StepLog
from negtemp_data.pipeline.board import Board
from negtemp_data.pipeline.monitor import Monitor
from negtemp_data.pipeline.progress import Progress, RowCounts, Work
from negtemp_data.pipeline.reasons import count_reasons
from negtemp_data.pipeline.snapshot import ArmSnapshot, Snapshot, read_snapshot
from negtemp_data.prompts import Plan
from negtemp_data.storage import Output, read_ledger
from small_output import file_of, make_sample, write_output
from test_stall import Clock

PLAN = Plan(n_prompts=4, n_bad=0, n_shards=4, prompts_per_shard=1, samples={"a": 1, "b": 2})


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def shard_rows(prompt_id: str) -> list[dict[str, Any]]:
    """The rows of a shard of the plan."""
    rows = [("a", 0, "accepted"), ("b", 0, "accepted"), ("b", 1, "rejected")]
    return [make_sample(prompt_id, arm, n, status=status) for arm, n, status in rows]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """Two committed shards."""
    return write_output(tmp_path / "out", map(shard_rows, ("p0", "p1")))


def events(output: Output) -> list[dict[str, Any]]:
    """All events, without their times."""
    lines = file_of(output, "_run/events.jsonl").read_text().splitlines()
    return [json.loads(line) | {"time": None} for line in lines]


def test_a_snapshot_holds_earlier_committed_and_open_rows(output: Output) -> None:
    clock, listener, board = Clock(), Listener(), Board()
    entries = read_ledger(output)
    monitor = Monitor(output, PLAN, [entries[0]], listener, clock)
    board.engine_starts("actor", "p-1")
    board.engine_ready("actor")
    monitor.look(board.read())
    monitor.commit(entries[1])
    clock.now += 10
    done = {"a": RowCounts(accepted=1), "b": RowCounts(accepted=1, rejected=1)}
    half = {"a": RowCounts(unverified=1), "b": RowCounts(failed=1)}
    # A report may come after the commit of a shard that it still speaks of.
    board.report("p-1", {1: done, 2: half}, Work(tokens=300))
    monitor.look(board.read())

    seen = read_snapshot(output)
    assert seen is not None and seen.is_live
    assert seen.arms == {
        "a": ArmSnapshot(4, accepted=2, rejected=0, failed=0, unverified=1, rows_per_s=0.0),
        "b": ArmSnapshot(8, accepted=2, rejected=2, failed=1, unverified=0, rows_per_s=0.0),
    }
    assert (seen.committed_shards, seen.planned_shards, seen.open_rows) == (2, 4, 3)
    assert (seen.stage, seen.engines, seen.starts_in_vain) == ("generating", 1, 1)
    progress = listener.seen[-1]
    assert (progress.earlier_rows, progress.made.rows, progress.tokens) == (3, 4, 300)

    monitor.end()
    last = read_snapshot(output)
    assert last is not None and last.is_over and not last.is_live


def test_rates_are_those_of_the_last_half_minute(output: Output) -> None:
    clock, board = Clock(), Board()
    monitor = Monitor(output, PLAN, [], Listener(), clock)
    for n in range(41):
        work = Work(tokens=20 * n)
        work.rows.update({"b": 2 * n})
        board.report("p-1", {}, work)
        # Another process is gone; what it did long ago is no news.
        board.report("p-0", {}, Work(tokens=100_000))
        board.report_judge("judge", "j-1", StepLog.of_step(8, 500 * n, 1.0, 8))
        monitor.look(board.read())
        clock.now += 1 if n < 10 else 10
    seen = read_snapshot(output)
    assert seen is not None
    assert (seen.tokens, seen.tokens_per_s) == (100_800, 2.0)
    assert (seen.judge_tokens, seen.judge_tokens_per_s) == (20_000, 50.0)
    assert [arm.rows_per_s for arm in seen.arms.values()] == [0.0, 0.2]


def test_a_snapshot_that_nobody_renews_is_not_live(output: Output) -> None:
    monitor = Monitor(output, PLAN, [], Listener(), Clock())
    monitor.look(Board().read())
    output.write_progress(output.read_progress() | {"time": 1e9})
    assert isinstance(seen := read_snapshot(output), Snapshot)
    assert not seen.is_live


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"arms": {"a": {}}}', '{"arms": 1}'])
def test_a_damaged_snapshot_is_none(output: Output, text: str) -> None:
    file_of(output, "_run/progress.json").write_text(text)
    assert read_snapshot(output) is None


def test_a_standstill_is_a_warning_and_two_events(output: Output) -> None:
    clock, listener, board = Clock(), Listener(), Board()
    monitor = Monitor(output, PLAN, [], listener, clock)
    board.engine_starts("actor", "p-1")
    board.engine_ready("actor")
    board.report("p-1", {0: {"a": RowCounts(unverified=1), "b": RowCounts(failed=2)}}, Work())
    for _ in range(4):
        monitor.look(board.read())
        clock.now += 60
    (warning,) = listener.warnings
    assert "stood still for 120 s at this stage: judging" in warning
    assert "3 rows under way, 1 of them to verify" in warning and "judge-*.log" in warning
    board.kept()
    monitor.look(board.read())
    stalled = {"stage": "judging", "seconds": 120, "open_rows": 3, "unverified": 1, "engines": 1}
    assert events(output) == [
        {"time": None, "event": "stalled", **stalled},
        {"time": None, "event": "goes_on", "stage": "judging", "seconds": 240},
    ]


def test_a_judge_that_works_is_a_sign_of_life(output: Output) -> None:
    clock, listener, board = Clock(), Listener(), Board()
    monitor = Monitor(output, PLAN, [], listener, clock)
    board.engine_ready("actor")
    steps = StepLog()
    for _ in range(6):
        steps += StepLog.of_step(8, 500, 1.0, 8)
        board.report_judge("judge", "j-1", steps)
        monitor.look(board.read())
        clock.now += 60
    assert listener.warnings == []


def test_a_full_disk_does_not_end_the_watching(output: Output) -> None:
    listener = Listener()
    monitor = Monitor(output, PLAN, [], listener, Clock())
    output.store.tmp.rmdir()
    monitor.look(Board().read())
    monitor.end()
    assert len(listener.seen) == 1


def test_a_dead_engine_is_not_ready_and_its_successor_replaces_it() -> None:
    board = Board()
    assert board.engine_starts("actor", "p-1") == (1, None)
    board.engine_ready("actor")
    board.died("actor")
    assert board.read().engines == set()
    assert board.engine_starts("actor", "p-2") == (2, "p-1")
    board.kept()
    assert board.engine_starts("other", "p-3") == (1, None)
    assert board.read().engine_starts == 3


def test_a_smaller_group_of_suspects_is_progress() -> None:
    board = Board()
    for n_starts in (1, 2, 3):
        assert board.engine_starts("w", f"p-{n_starts}")[0] == n_starts
        board.begin("w", 0)
        if n_starts == 3:
            board.run_group("w", ["a", "b"])
        board.died("w")
        assert board.read().starting == set()
    assert board.engine_starts("w", "p-4")[0] == 1


def test_reasons_are_counted_whatever_their_numbers() -> None:
    def failed(reason: str | None) -> dict[str, Any]:
        return make_sample("p", status="failed", error=reason)

    rows = [failed(f"the prompt has {n} tokens") for n in range(5000, 5003)]
    rows += [failed("the prompt is empty"), make_sample("p", error="not failed")]
    assert count_reasons(rows) == {"the prompt has # tokens": 3, "the prompt is empty": 1}
    many = [failed(f"reason {letter}") for letter in "abcdefghijklm"] + [failed(None)]
    assert len(count_reasons(many)) == 11 and count_reasons(many)["other reasons"] == 4
    assert count_reasons([make_sample("p")]) == {}
