"""Rows of unfinished shards: kept in their latest state, and known when they are damaged."""

from pathlib import Path

import pytest

from negtemp_data.errors import StorageError
from negtemp_data.storage import Output, WipWriter, read_wip, remove_wip, wip_shards
from test_storage_rows import make_row

VERDICT = ("status", "score", "scores", "checks", "rationale", "error")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path / "out")
    made.create()
    return made


def generated(row):
    return {name: value for name, value in row.items() if name not in VERDICT}


def test_rows_come_back_as_they_were(output: Output) -> None:
    rows = [make_row(f"p{number}", "control") for number in range(5)]
    writer = WipWriter(output, 3)
    for row in rows[:3]:
        writer.add(row)
    assert writer.flush() == 3
    writer.add(rows[3])
    writer.add(generated(rows[4]))
    assert writer.flush() == 2
    assert writer.flush() == 0
    kept = read_wip(output, 3)
    assert kept.done == {row["id"]: row for row in rows[:4]}
    blank = dict.fromkeys(VERDICT)
    assert kept.generated == {rows[4]["id"]: rows[4] | blank}
    assert kept.damaged == []
    assert wip_shards(output) == [3]
    assert read_wip(output, 4) == ({}, {}, [])


def test_the_latest_state_of_a_row_counts_whatever_the_order_of_the_files(output: Output) -> None:
    row = make_row("p", "control") | {"attempt": 1}
    states = [generated(row | {"attempt": 0}), generated(row), row]
    for state in reversed(states):
        writer = WipWriter(output, 0)
        writer.add(state)
        writer.flush()
        kept = read_wip(output, 0)
        assert kept.done == {row["id"]: row} and kept.generated == {}
    remove_wip(output, 0)
    for state in states[:2]:
        writer.add(state)
        writer.flush()
    assert read_wip(output, 0).generated[row["id"]]["attempt"] == 1


def test_a_row_that_goes_on_changing_is_kept_as_it_was_when_it_was_added(output: Output) -> None:
    row = generated(make_row("p", "control"))
    writer = WipWriter(output, 0)
    writer.add(row)
    row["status"] = "rejected"
    writer.flush()
    assert read_wip(output, 0).generated.keys() == {row["id"]}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_named_and_the_others_are_read(output: Output, damage: str) -> None:
    writer = WipWriter(output, 0)
    rows = [make_row(f"p{number}", "control") for number in range(2)]
    for row in rows:
        writer.add(row)
        writer.flush()
    first = sorted((output.wip.folder / "00000").iterdir())[0]
    data = bytearray(first.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data.clear()
    else:
        data[:] = b"something else"
    first.write_bytes(data)
    kept = read_wip(output, 0)
    assert kept.damaged == [first.name]
    assert len(kept.done) == 1


def test_what_can_not_be_written_is_an_error_and_what_was_kept_stays(output: Output) -> None:
    writer = WipWriter(output, 0)
    writer.add(make_row("p0", "control"))
    writer.flush()
    writer.add(make_row("p1", "control"))
    output.store.tmp.rmdir()
    with pytest.raises(StorageError, match="its folder is gone"):
        writer.flush()
    assert len(read_wip(output, 0).done) == 1


def test_a_folder_that_can_not_be_made_is_an_error_too(output: Output) -> None:
    writer = WipWriter(output, 0)
    writer.add(make_row("p", "control"))
    output.wip.folder.rmdir()
    output.wip.folder.write_text("a file")
    with pytest.raises(StorageError, match=r"wip/00000: can't be written"):
        writer.flush()


def test_without_the_folder_nothing_is_kept(output: Output) -> None:
    output.wip.folder.rmdir()
    assert wip_shards(output) == []


def test_a_row_that_does_not_fit_is_an_error(output: Output) -> None:
    writer = WipWriter(output, 0)
    writer.add(make_row("p", "control") | {"status": "unheard of"})
    with pytest.raises(StorageError, match="column status"):
        writer.flush()


def test_removing_leaves_nothing(output: Output) -> None:
    writer = WipWriter(output, 0)
    writer.add(make_row("p", "control"))
    writer.flush()
    remove_wip(output, 0)
    remove_wip(output, 0)
    assert wip_shards(output) == []
    assert read_wip(output, 0).done == {}


def test_what_a_commit_discards_is_not_written_later(output: Output) -> None:
    writer = WipWriter(output, 0)
    writer.add(make_row("p", "control"))
    writer.flush()
    writer.add(make_row("q", "control"))
    writer.discard()
    assert writer.flush() == 0
    assert wip_shards(output) == []
