"""The output folder: created, recognised, refused, reset; its lock; its small files."""

import errno
import fcntl
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from negtemp_data.errors import OutputError, OutputLockedError, StorageError
from negtemp_data.jobspec.fingerprint import Fingerprint
from negtemp_data.storage import Output, hold_lock, is_held
from small_output import file_of, shard_file

FINGERPRINT = Fingerprint(
    job={"seed": 7, "output": {"keep": "all"}, "schedules": {"a": {"temperature": "-inf"}}},
    prompts="p0",
    model="m0",
)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path / "out")
    made.create()
    made.write_fingerprint(FINGERPRINT)
    return made


def test_an_output_exists_once_its_fingerprint_is_written(tmp_path: Path) -> None:
    output = Output(tmp_path / "deep" / "out")
    output.create()
    assert not output.exists()
    output.write_fingerprint(FINGERPRINT)
    assert output.exists()
    output.create()


def test_an_output_pickles_and_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(Output("out"))).root == str(tmp_path / "out")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="is no negtemp output"):
        Output(tmp_path).create()
    assert os.listdir(tmp_path) == ["README.md"]


@pytest.mark.parametrize("below", ["", "out"])
def test_a_path_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="is a file or lies inside one"):
        Output(file / below).create()


def test_a_read_only_file_system_is_refused_even_where_the_folders_exist(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match="read-only; make it writable, or choose another --out"):
        output.create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        Output(tmp_path / "out").create()


def test_reset_removes_what_runs_wrote_and_nothing_else(output: Output) -> None:
    mine = [file_of(output, name) for name in ("notes.txt", "shard-1.arrow", "cache-1.arrow")]
    for path in (
        *mine,
        shard_file(output, 0),
        file_of(output, "state.json"),
        file_of(output, "dataset_info.json"),
    ):
        path.write_text("x")
    output.store.replace("README.md", b"x")
    output.append_event("started")
    (output.wip.folder / "00001").mkdir()
    with hold_lock(output):
        output.reset()
        assert sorted(path.name for path in output.run.folder.iterdir()) == ["lock", "lock.json"]
        output.create()
    assert output.store.entries() == sorted(["_run", *(path.name for path in mine)])
    assert not output.exists()


def test_reset_leaves_a_folder_alone_that_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    Output(tmp_path).reset()
    assert (tmp_path / "README.md").read_text() == "mine"


def test_clean_tmp_removes_what_a_killed_run_left(output: Output) -> None:
    (output.store.tmp / "abc").write_text("x")
    (output.store.tmp / "folder").mkdir()
    output.clean_tmp()
    assert os.listdir(output.store.tmp) == []


def test_job_and_fingerprint_are_read_back(output: Output) -> None:
    output.write_job("name: é\n")
    assert output.read_job() == "name: é\n"
    assert output.read_fingerprint() == FINGERPRINT


def test_a_folder_that_is_no_output_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"is no negtemp output: _run/fingerprint\.json"):
        Output(tmp_path).read_fingerprint()


@pytest.mark.parametrize("text", ["", "[]", '{"job": {}}'])
def test_a_broken_fingerprint_is_refused(output: Output, text: str) -> None:
    file_of(output, "_run/fingerprint.json").write_text(text)
    with pytest.raises(OutputError, match="is no fingerprint"):
        output.read_fingerprint()


def test_the_same_job_may_go_on(output: Output) -> None:
    output.check_fingerprint(FINGERPRINT)


def test_another_job_is_refused_with_all_that_differs(output: Output) -> None:
    new = replace(FINGERPRINT, job=FINGERPRINT.job | {"seed": 8}, model="m1")
    with pytest.raises(OutputError) as caught:
        output.check_fingerprint(new)
    assert "seed: 7 → 8; generate.model: its files have changed (m0 → m1)" in str(caught.value)
    assert "--out" in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_events_are_lines_with_a_time(output: Output) -> None:
    output.append_event("started", rows=3)
    output.append_event("stopped", reason="two\nlines")
    events = [
        json.loads(line) for line in file_of(output, "_run/events.jsonl").read_text().splitlines()
    ]
    assert [event["event"] for event in events] == ["started", "stopped"]
    assert events[0]["rows"] == 3
    assert events[0]["time"].endswith("+00:00")


def test_a_write_that_fails_leaves_the_old_file(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output.write_job("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match="the disk is full"):
            output.write_job("new")
    assert output.read_job() == "old"
    assert os.listdir(output.store.tmp) == []


HOLDER = """
import sys
from negtemp_data.storage import Output, hold_lock
with hold_lock(Output(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_held_by_another_process_is_refused_and_dies_with_it(output: Output) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, output.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputLockedError) as caught, hold_lock(output):
            pass
        assert f"process {holder.pid} on {socket.gethostname()}" in str(caught.value)
        holder.kill()
        holder.wait()
    with hold_lock(output):
        assert json.loads(file_of(output, "_run/lock.json").read_text())["pid"] == os.getpid()
    assert not file_of(output, "_run/lock.json").exists()


def test_a_lock_is_refused_within_one_process_too(output: Output) -> None:
    with hold_lock(output):
        file_of(output, "_run/lock.json").unlink()
        with pytest.raises(OutputLockedError, match="another run writes to it"), hold_lock(output):
            pass


def test_a_lock_is_free_again_after_an_error(output: Output) -> None:
    with pytest.raises(ZeroDivisionError), hold_lock(output):
        raise ZeroDivisionError
    with hold_lock(output):
        pass


def test_the_lock_is_held_exactly_while_a_run_holds_it(tmp_path):
    output = Output(tmp_path / "out")
    assert not is_held(output)
    output.create()
    with hold_lock(output):
        assert is_held(output)
    assert not is_held(output)


def test_who_looks_at_the_lock_does_not_keep_another_from_looking(output: Output) -> None:
    with hold_lock(output):
        pass
    with file_of(output, "_run/lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_held(output)
