"""The check finds each planted defect, names it, and says how to mend it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negtemp_data.errors import OutputError
from negtemp_data.jobspec.fingerprint import Fingerprint
from negtemp_data.storage import (
    CheckReport,
    Output,
    build_shard,
    check_output,
    commit_shard,
    describe_shard,
    encode_shard,
    read_ledger,
    write_entry,
    write_layout,
)
from small_output import file_of, shard_file
from test_storage_rows import make_row, make_rows


def plan_rows(shard: int) -> list[str]:
    return [row["id"] for row in make_rows(shard)]


def make_output(root: Path, keep: Any = "all") -> Output:
    """Two committed shards of a plan of three."""
    output = Output(root)
    output.create()
    output.write_fingerprint(Fingerprint({"output": {"keep": keep}}, "p", "m"))
    for index in range(2):
        commit_shard(output, index, build_shard(index, make_rows(index), keep, 1.0))
        write_entry(output, describe_shard(output, index))
    write_layout(output, read_ledger(output))
    return output


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return make_output(tmp_path / "out")


def check(output: Output) -> CheckReport:
    return check_output(output, plan_rows, n_shards=3)


def replace_shard(output: Output, index: int, table: pa.Table) -> None:
    """Plants a file that no commit would make, with a ledger that agrees."""
    shard_file(output, index).write_bytes(encode_shard(table))
    write_entry(output, describe_shard(output, index))


@pytest.mark.parametrize("keep", ["all", "accepted"])
def test_a_sound_output_has_no_problems_and_all_rows_accounted_for(
    tmp_path: Path, keep: str
) -> None:
    report = check(make_output(tmp_path / "out", keep))
    assert report == CheckReport(
        shards=2,
        rows=12 if keep == "all" else 4,
        planned=18,
        accepted=4,
        rejected=4,
        failed=4,
        not_done=6,
        problems=[],
    )
    assert report.ok


def test_without_a_plan_what_is_not_done_is_unknown(output: Output) -> None:
    report = check_output(output)
    assert report.ok
    assert report.not_done is None
    assert report.planned == 12


def test_a_lost_ledger_is_no_problem(output: Output) -> None:
    shutil.rmtree(output.shards.folder)
    assert check(output).ok


def test_a_new_output_is_sound(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.create()
    output.write_fingerprint(Fingerprint({"output": {"keep": "all"}}, "p", "m"))
    report = check(output)
    assert report.ok
    assert report.not_done == report.planned == 18


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no negtemp output"):
        check_output(Output(tmp_path))


def flip_byte(output: Output) -> None:
    data = bytearray(shard_file(output, 1).read_bytes())
    place = data.index(b"The sea is wide.")
    data[place] ^= 1
    shard_file(output, 1).write_bytes(data)


def cut_shard(output: Output) -> None:
    data = shard_file(output, 1).read_bytes()
    shard_file(output, 1).write_bytes(data[: len(data) // 2])


def lose_shard(output: Output) -> None:
    shard_file(output, 1).unlink()


def drop_column(output: Output) -> None:
    replace_shard(output, 1, build_shard(1, make_rows(1), "all", 1.0).drop_columns("ranks"))


def null_id(output: Output) -> None:
    table = build_shard(1, make_rows(1), "all", 1.0)
    replace_shard(output, 1, table.set_column(0, "id", pa.nulls(6, pa.string())))


def swap_rows(output: Output) -> None:
    replace_shard(output, 1, build_shard(1, make_rows(1)[::-1], "all", 1.0))


def lose_row(output: Output) -> None:
    replace_shard(output, 1, build_shard(1, make_rows(1)[:-1], "all", 1.0))


def add_row(output: Output) -> None:
    rows = [*make_rows(1), make_row("stranger", "control")]
    replace_shard(output, 1, build_shard(1, rows, "all", 1.0))


def repeat_shard(output: Output) -> None:
    replace_shard(output, 1, build_shard(1, make_rows(0), "all", 1.0))


def drop_rejected(output: Output) -> None:
    replace_shard(output, 1, build_shard(1, make_rows(1), "accepted", 1.0))


def add_shard(output: Output) -> None:
    commit_shard(output, 3, build_shard(3, make_rows(3), "all", 1.0))


def forge_ledger(output: Output) -> None:
    write_entry(output, replace(describe_shard(output, 1), generated_tokens=1))


def unlist_shard(output: Output) -> None:
    write_layout(output, {0: read_ledger(output)[0]})


def break_state(output: Output) -> None:
    file_of(output, "state.json").write_text("{")


def lose_state(output: Output) -> None:
    file_of(output, "state.json").unlink()


def break_info(output: Output) -> None:
    file_of(output, "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    ("plant", "messages"),
    [
        (flip_byte, ["shard-00001.arrow: its checksum is"]),
        (cut_shard, ["shard-00001.arrow: the shard is damaged"]),
        (lose_shard, ["shard-00001.arrow: is in the ledger, but the file is gone", "state.json"]),
        (drop_column, ["shard-00001.arrow: the shard is damaged (its columns are not those"]),
        (null_id, ["shard-00001.arrow: the shard is damaged (a row lacks its id"]),
        (swap_rows, ["shard-00001.arrow: its rows are not once each in the plan's order"]),
        (
            lose_row,
            [
                "shard-00001.arrow: accounts for 5 planned rows, but its plan has 6",
                "shard-00001.arrow: lacks 1 planned rows, as 'p1-2/negative/0'",
            ],
        ),
        (
            add_row,
            [
                "shard-00001.arrow: accounts for 7 planned rows, but its plan has 6",
                "holds 1 rows that are not in its plan, as 'stranger/control/0'",
            ],
        ),
        (
            repeat_shard,
            [
                "shard-00001.arrow: holds 6 rows that are not in its plan",
                "shard-00001.arrow: lacks 6 planned rows",
                *["shard-00000.arrow, shard-00001.arrow: the id"] * 6,
            ],
        ),
        (
            drop_rejected,
            [
                "holds 0 rows of arm 'control' with status 'failed' instead of 1",
                "holds 0 rows of arm 'control' with status 'rejected' instead of 1",
                "holds 0 rows of arm 'negative' with status 'failed' instead of 1",
                "holds 0 rows of arm 'negative' with status 'rejected' instead of 1",
                "shard-00001.arrow: lacks 4 planned rows",
            ],
        ),
        (add_shard, ["shard-00003.arrow: the plan has only 3 shards; delete", "state.json"]),
        (forge_ledger, ["shard-00001.arrow: its ledger entry disagrees with it; delete"]),
        (unlist_shard, ["state.json: lists 1 files, which are not the 2 committed"]),
        (break_state, ["state.json: can't be read"]),
        (lose_state, ["state.json: lists 0 files"]),
        (break_info, ["dataset_info.json: is missing or damaged"]),
    ],
)
def test_each_planted_defect_is_found_with_its_mend(
    output: Output, plant: Callable[[Output], None], messages: list[str]
) -> None:
    plant(output)
    report = check(output)
    assert not report.ok
    assert len(report.problems) == len(messages)
    for problem, message in zip(report.problems, messages, strict=True):
        assert message in problem
        assert "\n" not in problem
        assert "delete" in problem or "negtemp resume" in problem


def test_rows_of_a_damaged_shard_count_as_not_done(output: Output) -> None:
    cut_shard(output)
    report = check(output)
    assert (report.shards, report.planned, report.not_done) == (1, 18, 12)


def test_many_duplicate_ids_are_counted_and_only_some_named(output: Output) -> None:
    rows = [make_row(f"p{number}", "control") for number in range(30)]
    for index in range(2):
        replace_shard(output, index, build_shard(index, rows, "all", 1.0))
    problems = check_output(output).problems
    assert len(problems) == 11
    assert problems[-1].startswith("20 more ids occur several times")


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return make_output(tmp_path_factory.mktemp("flipped") / "out")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_changed_byte_is_found(flipped: Output, data: Any) -> None:
    sound = shard_file(flipped, 1).read_bytes()
    place = data.draw(st.integers(0, len(sound) - 1))
    changed = bytearray(sound)
    changed[place] ^= data.draw(st.integers(1, 255))
    shard_file(flipped, 1).write_bytes(changed)
    try:
        assert not check(flipped).ok
    finally:
        shard_file(flipped, 1).write_bytes(sound)


def test_ids_that_share_a_digest_are_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(tmp_path / "out")
    output.create()
    output.write_fingerprint(Fingerprint({"output": {"keep": "all"}}, "p", "m"))
    rows = [make_row(f"p{n}", "control") for n in range(40)]
    commit_shard(output, 0, build_shard(0, rows, "all", 1.0))
    write_layout(output, read_ledger(output))
    # Digests of one byte: some of forty ids have the same.
    monkeypatch.setattr("negtemp_data.storage.check._DIGEST", np.dtype("u1"))
    assert check_output(output).problems == []
