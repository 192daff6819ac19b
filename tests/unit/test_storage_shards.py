"""A shard is committed once, whole, by exactly one writer, whatever the disk does."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.errors import StorageError
from negtemp_data.storage import (
    Output,
    build_shard,
    commit_shard,
    describe_shard,
    encode_shard,
    read_batches,
    rows_to_table,
    shard_name,
)
from small_output import shard_file
from test_storage_rows import make_row, make_rows


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path / "out")
    made.create()
    return made


def commit(output: Output, index: int, seconds: float = 1.0) -> bool:
    return commit_shard(output, index, build_shard(index, make_rows(index), "all", seconds))


def is_tmp_empty(output: Output) -> bool:
    return not any(output.store.tmp.iterdir())


def test_a_shard_is_named_by_its_index() -> None:
    assert shard_name(0) == "shard-00000.arrow"
    assert shard_name(123456) == "shard-123456.arrow"


def test_a_committed_shard_holds_its_rows(output: Output) -> None:
    assert commit(output, 4)
    rows = [row for batch in read_batches(output, 4) for row in batch.to_pylist()]
    assert rows == make_rows(4)
    assert output.committed_shards() == [4]
    assert is_tmp_empty(output)


def test_a_committed_shard_can_be_memory_mapped_without_copies(output: Output) -> None:
    commit(output, 0)
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(shard_file(output, 0))) as source:
        table = pa.ipc.open_stream(source).read_all()
        assert table.num_rows == 6
        assert pa.total_allocated_bytes() == before


def test_the_second_commit_is_discarded_and_changes_no_byte(output: Output) -> None:
    assert commit(output, 0, seconds=1.0)
    before = shard_file(output, 0).read_bytes()
    assert not commit(output, 0, seconds=2.0)
    assert shard_file(output, 0).read_bytes() == before
    assert is_tmp_empty(output)


def test_exactly_one_of_many_threads_commits(output: Output) -> None:
    tables = [build_shard(0, make_rows(0), "all", float(number)) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        won = list(pool.map(lambda table: commit_shard(output, 0, table), tables))
    assert won.count(True) == 1
    assert describe_shard(output, 0).seconds == won.index(True)
    assert is_tmp_empty(output)


RACER = """
import sys
import pyarrow as pa
from negtemp_data.storage import Output, commit_shard
table = pa.ipc.open_stream(pa.memory_map(sys.argv[2])).read_all()
print("ready", flush=True)
sys.stdin.readline()
sys.exit(0 if commit_shard(Output(sys.argv[1]), 0, table) else 3)
"""


def test_exactly_one_of_many_processes_commits(output: Output, tmp_path: Path) -> None:
    racers = []
    for number in range(4):
        offer = tmp_path / f"offer-{number}"
        offer.write_bytes(encode_shard(build_shard(0, make_rows(0), "all", float(number))))
        racers.append(
            subprocess.Popen(
                [sys.executable, "-c", RACER, output.root, str(offer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    codes = []
    for racer in racers:
        racer.communicate()
        codes.append(racer.returncode)
    assert sorted(codes) == [0, 3, 3, 3]
    assert shard_file(output, 0).read_bytes() == (tmp_path / f"offer-{codes.index(0)}").read_bytes()
    assert is_tmp_empty(output)


def _fail(code: int) -> Any:
    def call(*_: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("fsync", errno.ENOSPC, "the disk is full; free some space"),
        ("fsync", errno.EDQUOT, "quota is used up"),
        ("fsync", errno.EIO, "Input/output error"),
        ("link", errno.EROFS, "the file system is read-only"),
        ("link", errno.EACCES, "permission denied"),
        ("link", errno.EPERM, "no hard links; choose an output path"),
        ("link", errno.ENOTSUP, "no hard links; choose an output path"),
    ],
)
def test_a_disk_that_refuses_is_a_storage_error_and_the_shard_can_be_committed_later(
    output: Output, monkeypatch: pytest.MonkeyPatch, function: str, code: int, message: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, function, _fail(code))
        with pytest.raises(StorageError) as caught:
            commit(output, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert output.committed_shards() == []
    assert is_tmp_empty(output)
    assert commit(output, 0)


def test_a_file_that_hits_a_real_size_limit_leaves_nothing_behind(output: Output) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            commit(output, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert output.committed_shards() == []
    assert is_tmp_empty(output)


def test_an_output_that_vanished_is_a_storage_error(output: Output) -> None:
    shutil.rmtree(output.root)
    with pytest.raises(StorageError, match="its folder is gone"):
        commit(output, 0)


def test_keep_accepted_leaves_rows_out_but_accounts_for_them(output: Output) -> None:
    rows = make_rows(0)
    commit_shard(output, 0, build_shard(0, rows, "accepted", 1.0))
    kept = [row for batch in read_batches(output, 0) for row in batch.to_pylist()]
    assert kept == [row for row in rows if row["status"] == "accepted"]
    entry = describe_shard(output, 0)
    assert (entry.rows, entry.planned) == (2, 6)
    assert entry.counts["negative"] == {"accepted": 1, "rejected": 1, "failed": 1}


def test_a_shard_of_which_no_row_is_kept_can_be_committed(output: Output) -> None:
    commit_shard(output, 0, build_shard(0, [make_row("p", "control", "failed")], "accepted", 1.0))
    assert list(read_batches(output, 0)) == []
    assert describe_shard(output, 0).counts["control"]["failed"] == 1


@pytest.mark.parametrize(
    "table",
    [
        rows_to_table(make_rows(0)),
        build_shard(1, make_rows(0), "all", 1.0),
        build_shard(0, make_rows(0), "all", 1.0).slice(1),
        build_shard(0, make_rows(0), "all", 1.0).drop_columns("ranks"),
    ],
    ids=["no account", "another shard", "a row less", "a column less"],
)
def test_only_the_table_of_this_shard_is_committed(output: Output, table: pa.Table) -> None:
    with pytest.raises(StorageError):
        commit_shard(output, 0, table)
    assert output.committed_shards() == []


@pytest.fixture(scope="module")
def cut_output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    made = Output(tmp_path_factory.mktemp("cut") / "out")
    made.create()
    return made


SHARD = build_shard(0, [make_row(f"p{number}", "negative") for number in range(70)], "all", 1.0)


@given(st.data())
def test_a_shard_cut_anywhere_is_reported_as_damaged(cut_output: Output, data: Any) -> None:
    shard_file(cut_output, 0).unlink(missing_ok=True)
    commit_shard(cut_output, 0, SHARD)
    size = shard_file(cut_output, 0).stat().st_size
    os.truncate(shard_file(cut_output, 0), data.draw(st.integers(0, size - 1)))
    with pytest.raises(StorageError, match=r"shard-00000\.arrow: the shard is damaged .*delete"):
        describe_shard(cut_output, 0)


def test_a_shard_under_another_name_is_reported_as_damaged(output: Output) -> None:
    commit(output, 0)
    shutil.copy(shard_file(output, 0), shard_file(output, 1))
    with pytest.raises(StorageError, match=r"shard-00001\.arrow: the shard is damaged"):
        describe_shard(output, 1)


def test_a_missing_shard_is_a_storage_error(output: Output) -> None:
    with pytest.raises(StorageError, match="No such file"):
        list(read_batches(output, 0))
