"""`negtemp status` beside a run: live figures, watching, and no life where there is none."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner

from negtemp_data.cli.main import negtemp
from negtemp_data.pipeline.snapshot import ArmSnapshot, Snapshot, write_snapshot
from negtemp_data.storage import Output, build_shard, commit_shard, describe_shard, hold_lock
from negtemp_data.storage.ledger import write_entry
from small_output import make_sample, write_output
from test_terminal import PROGRAM

ARM = ArmSnapshot(planned=2, accepted=1, rejected=1, failed=0, unverified=3, rows_per_s=1.5)


def shard_rows(prompt_id: str) -> list[dict[str, Any]]:
    """One accepted row of each arm, one rejected."""
    return [
        make_sample(prompt_id, arm, sample, status=status)
        for arm in ("control", "negative")
        for sample, status in enumerate(("accepted", "rejected"))
    ]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """One of two shards is committed."""
    return write_output(tmp_path / "out", [shard_rows("p0")], n_planned=2)


@pytest.fixture
def running(output: Output) -> Iterator[Output]:
    """A run, this test, writes to it."""
    with hold_lock(output):
        say(output)
        yield output


def say(output: Output, **fields: Any) -> None:
    """Writes what a run would say of itself."""
    snapshot = {
        "time": time.time(),
        "stage": "generating",
        "still_s": 0.0,
        "planned_shards": 2,
        "committed_shards": 1,
        "open_rows": 4,
        "arms": {"control": ARM, "negative": ARM},
        "tokens": 500,
        "tokens_per_s": 321.4,
        "judge_tokens": 0,
        "judge_tokens_per_s": 0.0,
        "engines": 2,
        "starts_in_vain": 0,
    }
    write_snapshot(output, Snapshot(**(snapshot | fields)))


def finish(output: Output) -> None:
    """Commits the shard that is missing."""
    commit_shard(output, 1, build_shard(1, shard_rows("p1"), "all", 1.0))
    write_entry(output, describe_shard(output, 1))
    say(output, is_over=True)


def status(output: Output, *options: str) -> Any:
    return CliRunner().invoke(negtemp, ["status", output.root, *options])


def test_status_shows_speed_acceptance_and_engines(running: Output) -> None:
    text = status(running).stdout
    assert "321 tok/s · 6 to verify · 3.0 rows/s · 2 engines · generating" in " ".join(text.split())
    assert "1 50%" in text
    data = json.loads(status(running, "--json").stdout)
    assert data["running"] and data["live"]["tokens_per_s"] == 321.4
    assert data["live"]["arms"]["negative"]["rows_per_s"] == 1.5
    assert data["arms"]["negative"]["acceptance"] == 0.5


def test_what_a_dead_run_said_is_not_shown(output: Output) -> None:
    say(output)
    result = status(output)
    assert "tok/s" not in result.stdout
    assert "nobody is writing here: negtemp resume" in result.stdout
    data = json.loads(status(output, "--json").stdout)
    assert (data["running"], data["live"]) == (False, None)


def test_a_run_that_is_silent_is_not_shown_as_live(running: Output) -> None:
    say(running, time=time.time() - 60)
    text = status(running).stdout
    assert "tok/s" not in text and "says nothing of its progress" in text


def test_an_unfinished_output_that_nobody_writes_to_ends_the_watching_at_once(
    output: Output,
) -> None:
    result = status(output, "--watch")
    assert result.exit_code == 1
    assert "nobody is writing here: negtemp resume" in result.stdout


def test_watching_prints_a_line_a_change_and_ends_with_the_run(output: Output) -> None:
    command = [PROGRAM, "status", output.root, "--watch"]
    quiet = {"PYTHONUNBUFFERED": "1"}
    with ExitStack() as lock:
        lock.enter_context(hold_lock(output))
        say(output)
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet) as watcher,
            ExitStack() as run,
        ):
            run.callback(watcher.kill)  # where an assertion fails it would go on watching
            assert watcher.stdout is not None
            assert "1/2 shards · 321 tok/s · 6 to verify" in watcher.stdout.readline()
            say(output, tokens_per_s=99.0, stage="judging")
            assert "99 tok/s" in watcher.stdout.readline()
            say(output, tokens_per_s=77.0, stage="judging")  # no change that matters
            finish(output)
            lock.close()
            rest = watcher.stdout.read()
            assert watcher.wait() == 0
    assert "2 of 2 shards" in rest and "tok/s" not in rest


def test_watching_on_a_narrow_terminal_refreshes_in_place_until_interrupted(
    running: Output,
) -> None:
    child = pexpect.spawn(
        PROGRAM,
        ["status", str(running.root), "--watch"],
        dimensions=(24, 60),
        encoding="utf-8",
        timeout=30,
    )
    child.expect("to verify")
    child.expect("generating")
    say(running, stage="judging")
    child.expect(r"\x1b\[1A")  # back over what is there
    child.expect("judging")
    child.kill(signal.SIGINT)
    text = child.read()
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in text and "Interrupted" not in text


def test_one_moment_or_what_changes(output: Output) -> None:
    result = status(output, "--watch", "--json")
    assert result.exit_code == 2 and "give one of them" in result.stderr
