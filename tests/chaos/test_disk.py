"""Disks that fill up or turn read-only under a run: a clear error, and nothing lost."""

import json
import subprocess
from contextlib import suppress

import pytest
from runs import (
    SAMPLES,
    Command,
    assert_complete,
    assert_gone,
    digests,
    family,
    wait_until,
    write_job,
)

N_PROMPTS = 24
DISK = "64m"


def mount(*arguments):
    """Mounts something, where that is allowed."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount here: {done.stderr.decode().strip()}")


@pytest.fixture
def disk(tmp_path):
    """A small disk of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder)
    yield folder
    # Lazily, because something may still have a log file open.
    subprocess.run(["umount", "--lazy", "--recursive", str(folder)], check=True)


def start_run(disk, model):
    """A run on `disk` that has something to lose, and its output."""
    out = disk / "out"
    (disk.parent / "job").mkdir()
    process = Command("run", write_job(disk.parent / "job", model, N_PROMPTS, out=out))
    wait_until(lambda: len(digests(out)) >= 2 and (out / "state.json").exists(), process)
    return process, out


def fill(disk):
    """Leaves not a byte; returns the file that takes the room."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def assert_stopped(process, out, why):
    """The run ended with one clear paragraph and left nobody behind."""
    members = family(process)
    stderr = process.end(120)
    assert process.returncode == 1, stderr
    assert f"Error: {out}" in stderr and why in stderr and "negtemp resume" in stderr, stderr
    assert "Traceback" not in stderr
    assert_gone(members)


def assert_readable(negtemp, out):
    """What is committed can be used as if nothing had happened; returns it."""
    import datasets

    before = digests(out)
    assert 2 <= len(before) < N_PROMPTS // 2
    rows = datasets.load_from_disk(str(out))
    assert 0 < len(rows) <= 8 * len(before) and len(set(rows["id"])) == len(rows)
    status = json.loads(negtemp("status", str(out), "--json").stdout)
    assert status["shards"] == {"committed": len(before), "planned": N_PROMPTS // 2}
    assert status["running"] is False
    report = json.loads(negtemp("check", str(out), "--json").stdout)
    assert report["planned"] == N_PROMPTS * SAMPLES
    assert report["rows"] == len(before) * 8
    # The list of files may be older than the last shard; a resume brings it up to date.
    assert [problem for problem in report["problems"] if "state.json" not in problem] == []
    return before


@pytest.mark.slow
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(tiny_model, negtemp, disk):
    process, out = start_run(disk, tiny_model)
    ballast = fill(disk)
    assert_stopped(process, out, "the disk is full; free some space")
    before = assert_readable(negtemp, out)
    refused = negtemp("resume", str(out))
    assert refused.returncode == 1 and "the disk is full" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    ballast.unlink()
    resumed = negtemp("resume", str(out))
    assert resumed.returncode == 0 and "Traceback" not in resumed.stderr, resumed.stderr
    assert_complete(negtemp, out, N_PROMPTS, before)


@pytest.mark.slow
def test_an_output_that_turns_read_only_stops_a_run_that_goes_on_when_it_can_be_written(
    tiny_model, negtemp, disk
):
    process, out = start_run(disk, tiny_model)
    # A mount on top, because a file system with files open for writing does not turn read-only.
    mount("--bind", out, out)
    mount("-o", "remount,bind,ro", out)
    assert_stopped(process, out, "the file system is read-only; make it writable")
    before = assert_readable(negtemp, out)
    refused = negtemp("resume", str(out))
    assert refused.returncode in (1, 2) and "ead-only" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    subprocess.run(["umount", str(out)], check=True)
    resumed = negtemp("resume", str(out))
    assert resumed.returncode == 0 and "Traceback" not in resumed.stderr, resumed.stderr
    assert_complete(negtemp, out, N_PROMPTS, before)
