"""Exports as folders: whole or not there, the same every time, no prompt on two sides."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.errors import ExportError, StorageError
from negtemp_data.export import (
    ExportRequest,
    ExportResult,
    PromptSplit,
    build_format,
    export_output,
    files,
    parse_split,
)
from negtemp_data.storage import Output
from small_output import make_job, make_sample, shard_file, write_output


def make_shard(shard: int, n_prompts: int = 20) -> list[dict[str, Any]]:
    return [
        make_sample(
            f"p{shard}-{number}",
            arm,
            sample,
            status="rejected" if sample else "accepted",
            score=3.0 - sample,
            positions=[1] if arm == "negative" else [],
        )
        for number in range(n_prompts)
        for arm in ("control", "negative")
        for sample in range(2)
    ]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return write_output(tmp_path / "out", [make_shard(0), make_shard(1)])


def export(
    output: Output,
    dest: Path,
    name: str = "dpo",
    split: str = "train=1",
    arms: tuple[str, ...] = (),
    **options: Any,
) -> ExportResult:
    chosen = build_format(name, make_job(), options)
    shares = PromptSplit(parse_split(split))
    return export_output(ExportRequest(output, dest, name, chosen, shares, arms))


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_split(dest: Path, split: str) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((dest / "data").glob(f"{split}-*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_is_data_files_and_a_card(output: Output, tmp_path: Path) -> None:
    result = export(output, tmp_path / "dest", split="train=0.7,test=0.3", shape="text")
    assert list(read_folder(tmp_path / "dest")) == [
        "README.md",
        "data/test-00000.parquet",
        "data/train-00000.parquet",
    ]
    assert result.is_complete and result.files == 2
    rows = {name: read_split(tmp_path / "dest", name) for name in ("train", "test")}
    assert {name: len(found) for name, found in rows.items()} == result.rows
    # Of each prompt two accepted rows beat two rejected ones; twins and extremes are among these.
    assert sum(result.rows.values()) == 40 * 4
    assert result.kinds["verdict"] == result.rows


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "parquet", "jsonl"])
def test_the_same_export_twice_is_the_same_bytes(output: Output, tmp_path: Path, name: str) -> None:
    for dest in ("first", "second"):
        export(output, tmp_path / dest, name, split="train=0.7,test=0.3")
    first = read_folder(tmp_path / "first")
    assert first == read_folder(tmp_path / "second")
    assert any(path.startswith("data/test") for path in first)


def test_files_are_cut_by_size(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(output, tmp_path / "one")
    monkeypatch.setattr(files, "GROUP_BYTES", 1000)
    monkeypatch.setattr(files, "FILE_BYTES", 10_000)
    for name in ("dpo", "jsonl"):
        result = export(output, tmp_path / name, name)
        assert result.files == len(names_in(tmp_path / name / "data")) > 1
    assert read_split(tmp_path / "dpo", "train") == read_split(tmp_path / "one", "train")


def test_jsonl_holds_every_column_and_row(output: Output, tmp_path: Path) -> None:
    export(output, tmp_path / "dest", "jsonl")
    text = (tmp_path / "dest/data/train-00000.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == make_shard(0) + make_shard(1)


def test_only_the_arms_that_were_asked_for_are_read(output: Output, tmp_path: Path) -> None:
    export(output, tmp_path / "dest", "parquet", arms=("negative",))
    rows = read_split(tmp_path / "dest", "train")
    assert len(rows) == 80 and {row["arm"] for row in rows} == {"negative"}
    with pytest.raises(ExportError, match=r"--arm hot: .* it has control, negative"):
        export(output, tmp_path / "other", arms=("hot",))


# --- splits


@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=30, unique=True),
    st.floats(0.05, 0.95),
)
def test_a_prompt_is_in_one_split_whatever_its_id(texts: list[str], share: float) -> None:
    split = PromptSplit({"train": share, "test": 1 - share})
    for text in texts:
        ids = ("a", "b", "c")
        assert len({split.assign(make_sample(i, prompt=text)) for i in ids}) == 1


@settings(max_examples=10, derandomize=True)
@given(st.floats(0.05, 0.95))
def test_shares_are_met_on_average(share: float) -> None:
    split = PromptSplit({"train": share, "test": 1 - share})
    n = 4000
    found = sum(split.assign(make_sample(f"{share} {i}")) == "train" for i in range(n))
    assert abs(found / n - share) < 5 * (share * (1 - share) / n) ** 0.5


def test_splits_share_no_prompt_even_where_two_ids_ask_the_same(tmp_path: Path) -> None:
    # Every prompt comes twice, under different ids and in different shards.
    again = [row | {"prompt": row["prompt"].replace("p1-", "p0-")} for row in make_shard(1)]
    output = write_output(tmp_path / "out", [make_shard(0), again])
    export(output, tmp_path / "dest", "sft", split="train=0.5,test=0.5", best_only=False)
    sides = [
        [row["prompt"][0]["content"] for row in read_split(tmp_path / "dest", name)]
        for name in ("train", "test")
    ]
    assert not set(sides[0]) & set(sides[1])
    assert sorted(sides[0] + sides[1]) == sorted(4 * list({*sides[0], *sides[1]}))


def test_a_prompt_keeps_its_side_while_a_run_goes_on(tmp_path: Path) -> None:
    shards = [make_shard(0), make_shard(1)]
    sides = []
    for n in (1, 2):
        output = write_output(tmp_path / f"out{n}", shards[:n])
        export(output, tmp_path / f"dest{n}", "sft", split="train=0.5,test=0.5")
        sides.append(
            {row["prompt"][0]["content"] for row in read_split(tmp_path / f"dest{n}", "test")}
        )
    assert sides[0] and sides[0] < sides[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train", "'train' is no share"),
        ("train=x", "'train=x' is no share"),
        ("train=nan", "no share"),
        ("train=0,test=1", "'train=0' is no share"),
        ("train=0.5,train=0.5", "'train=0.5' is no share"),
        ("../train=1", "no share"),
        ("all=1", "no share"),
        ("train=0.5,test=0.4", "the shares add up to 0.9, not 1"),
    ],
)
def test_a_split_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_split(text)


def test_a_split_without_rows_is_refused(output: Output, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no row fell into 'test'; give it a larger share"):
        export(output, tmp_path / "dest", split="train=0.999999,test=0.000001")
    assert names_in(tmp_path) == ["out"]


# --- what there is to export


def test_an_unfinished_run_is_exported_as_far_as_it_is(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out", [make_shard(0)], n_planned=3)
    result = export(output, tmp_path / "dest")
    assert not result.is_complete
    assert (result.committed_shards, result.planned_shards) == (1, 3)
    card = (tmp_path / "dest/README.md").read_text()
    assert "**From an unfinished run:** 1 of 3 shards." in card


def test_a_finished_run_has_a_card_with_counts_schedules_models_licences_and_limits(
    output: Output, tmp_path: Path
) -> None:
    export(output, tmp_path / "dest", margin=0.5)
    card = (tmp_path / "dest/README.md").read_text()
    assert "unfinished" not in card
    for text in (
        "| **all** | 160 |",
        "| margin | 0.5 |",
        "| negative | 80 | 40 | 40 | 0 | 2.50 | 80 |",
        "temperature: -1.0",
        "`smollm2-135m-instruct`: revision revision-1; licence: Apache-2.0.",
        "## Known limits",
        "trl.DPOTrainer",
    ):
        assert text in card
    assert str(tmp_path) not in card


def test_an_output_without_a_committed_shard_is_refused(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out", [])
    with pytest.raises(ExportError, match="no shard is committed yet; `negtemp resume"):
        export(output, tmp_path / "dest")


def test_an_output_of_which_no_row_fits_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    rows = [row | {"status": "rejected"} for row in make_shard(0)]
    output = write_output(tmp_path / "out", [rows])
    with pytest.raises(ExportError, match="none of the 80 committed rows gives a row of sft"):
        export(output, tmp_path / "dest", "sft")
    assert names_in(tmp_path) == ["out"]


# --- the destination


def test_a_destination_that_is_taken_is_refused_and_keeps_its_content(
    output: Output, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(ExportError, match=f"{name}: exists already"):
            export(output, tmp_path / name)
    assert (tmp_path / "folder/file").read_text() == (tmp_path / "file").read_text() == "mine"
    assert names_in(tmp_path) == ["file", "folder", "link", "out"]


def test_an_empty_folder_is_filled_and_parents_are_made(output: Output, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(output, tmp_path / "empty")
    export(output, tmp_path / "deep/er/dest")
    assert read_folder(tmp_path / "empty") == read_folder(tmp_path / "deep/er/dest")


def test_a_destination_inside_a_file_is_refused(output: Output, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="choose another DEST"):
        export(output, tmp_path / "file/dest")


def test_a_second_export_to_the_same_place_is_refused(output: Output, tmp_path: Path) -> None:
    (tmp_path / ".dest.partial").mkdir()
    descriptor = os.open(tmp_path / ".dest.partial", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ExportError, match="another export to it is going on"):
            export(output, tmp_path / "dest")
    finally:
        os.close(descriptor)
    assert names_in(tmp_path) == [".dest.partial", "out"]


def test_what_a_killed_export_left_is_cleared_by_the_next(output: Output, tmp_path: Path) -> None:
    (tmp_path / ".dest.partial/data").mkdir(parents=True)
    (tmp_path / ".dest.partial/data/train-00009.parquet").write_text("half")
    export(output, tmp_path / "dest")
    export(output, tmp_path / "clean")
    assert read_folder(tmp_path / "dest") == read_folder(tmp_path / "clean")
    assert names_in(tmp_path) == ["clean", "dest", "out"]


# --- interruptions


SLOW_EXPORT = """
import sys, time
from pathlib import Path
from negtemp_data.cli.run import interrupt
from negtemp_data.export import *
from negtemp_data.storage import Output
from small_output import make_job
import signal
signal.signal(signal.SIGTERM, interrupt)
def stop_midway(done, total):
    print(done, flush=True)
    time.sleep(60)
chosen = build_format("jsonl", make_job(), {})
request = ExportRequest(
    Output(sys.argv[1]), Path(sys.argv[2]), "jsonl", chosen, PromptSplit(TRAIN_ONLY)
)
export_output(request, stop_midway)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_export_leaves_no_destination_and_can_be_repeated(
    output: Output, tmp_path: Path, number: signal.Signals
) -> None:
    dest = tmp_path / "dest"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_EXPORT, output.root, str(dest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"80\n"
    # Half of the rows are written, and none of them where a reader would look.
    assert not dest.exists() and (tmp_path / ".dest.partial/data").is_dir()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not dest.exists()
    left = [] if number is not signal.SIGKILL else [".dest.partial"]
    assert names_in(tmp_path) == [*left, "out"]
    export(output, dest, "jsonl")
    assert names_in(tmp_path) == ["dest", "out"]
    assert len((dest / "data/train-00000.jsonl").read_text().splitlines()) == 160


def _raise(code: int) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("name", ["dpo", "jsonl"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space, then export again"),
        (errno.EIO, "Input/out"),
    ],
)
def test_a_disk_that_refuses_is_a_storage_error_and_nothing_is_left(
    output: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    message: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _raise(code))
        with pytest.raises(StorageError, match=message):
            export(output, tmp_path / "dest", name)
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["parquet", "jsonl"])
def test_a_file_that_hits_a_real_size_limit_leaves_nothing_behind(
    output: Output, tmp_path: Path, name: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            export(output, tmp_path / "dest", name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == ["out"]


def test_a_damaged_shard_is_reported_and_nothing_is_left(output: Output, tmp_path: Path) -> None:
    path = shard_file(output, 1)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-8] + b"\0" * 8)
    with pytest.raises(StorageError, match=r"shard-00001\.arrow: the shard is damaged"):
        export(output, tmp_path / "dest")
    assert names_in(tmp_path) == ["out"]
