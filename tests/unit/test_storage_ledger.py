"""The ledger is a cache of the shards; totals, layout and card are made from it."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from ruamel.yaml import YAML

from negtemp_data.errors import StorageError
from negtemp_data.jobspec import Job, build_job
from negtemp_data.storage import (
    COLUMNS,
    Output,
    ShardEntry,
    build_shard,
    commit_shard,
    describe_shard,
    read_ledger,
    rebuild_ledger,
    summarise,
    write_card,
    write_entry,
    write_layout,
)
from small_output import file_of, shard_file
from test_storage_rows import make_row, make_rows


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path / "out")
    made.create()
    return made


def add_shard(output: Output, index: int, keep: Any = "all") -> ShardEntry:
    commit_shard(output, index, build_shard(index, make_rows(index), keep, 0.1 + index))
    entry = describe_shard(output, index)
    write_entry(output, entry)
    return entry


def test_an_entry_accounts_for_the_planned_rows(output: Output) -> None:
    entry = add_shard(output, 2)
    each = {"accepted": 1, "rejected": 1, "failed": 1}
    assert (entry.shard, entry.rows, entry.planned) == (2, 6, 6)
    assert entry.counts == {"control": each, "negative": each}
    assert entry.generated_tokens == 24
    assert entry.injections == {"control": 0, "negative": 3}
    assert entry.score_sum == {"control": 7.0, "negative": 7.0}
    assert entry.scored == {"control": 2, "negative": 2}
    assert entry.seconds == 2.1
    assert entry.size_bytes == shard_file(output, 2).stat().st_size
    assert len(entry.checksum) == 32


@pytest.mark.parametrize("keep", ["all", "accepted"])
def test_a_lost_ledger_is_rebuilt_as_it_was(output: Output, keep: str) -> None:
    entries = {index: add_shard(output, index, keep) for index in (0, 2, 5)}
    before = {path.name: path.read_bytes() for path in output.shards.folder.iterdir()}
    for path in output.shards.folder.iterdir():
        path.unlink()
    assert read_ledger(output) == entries
    assert rebuild_ledger(output) == entries
    assert {path.name: path.read_bytes() for path in output.shards.folder.iterdir()} == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"shard": 0}'])
def test_an_unreadable_entry_is_replaced_from_the_shard(output: Output, text: str) -> None:
    entry = add_shard(output, 0)
    path = output.shards.folder / "00000.json"
    path.write_text(text)
    assert rebuild_ledger(output) == {0: entry}
    assert json.loads(path.read_text())["checksum"] == entry.checksum


def test_an_entry_of_another_file_is_replaced_from_the_shard(output: Output) -> None:
    add_shard(output, 0)
    shard_file(output, 0).unlink()
    commit_shard(output, 0, build_shard(0, [make_row("p", "control")], "all", 1.0))
    assert read_ledger(output)[0].planned == 1


def test_an_entry_without_its_shard_is_dropped(output: Output) -> None:
    kept = add_shard(output, 0)
    add_shard(output, 1)
    shard_file(output, 1).unlink()
    assert read_ledger(output) == {0: kept}
    assert rebuild_ledger(output) == {0: kept}
    assert [path.name for path in output.shards.folder.iterdir()] == ["00000.json"]


def test_a_truncated_shard_stops_the_ledger_with_its_name_and_the_mend(output: Output) -> None:
    add_shard(output, 0)
    data = shard_file(output, 0).read_bytes()
    shard_file(output, 0).write_bytes(data[:-1000])
    with pytest.raises(StorageError, match=r"shard-00000\.arrow: .*delete this file, then"):
        read_ledger(output)


def test_an_output_that_is_not_there_has_an_empty_ledger(tmp_path: Path) -> None:
    assert read_ledger(Output(tmp_path / "none")) == {}


def test_totals_add_up_by_arm_against_the_plan(output: Output) -> None:
    entries = {index: add_shard(output, index) for index in range(2)}
    totals = summarise(entries, {"control": 10, "negative": 6, "later": 4})
    control = totals.arms["control"]
    assert (control.accepted, control.rejected, control.failed, control.not_done) == (2, 2, 2, 4)
    assert control.planned == 10
    assert control.mean_score == 3.5
    assert totals.arms["negative"].injections == 6
    assert totals.arms["later"].not_done == 4
    assert totals.arms["later"].mean_score is None
    assert totals.overall.planned == 20
    assert totals.overall.not_done == 8
    assert (totals.shards, totals.generated_tokens) == (2, 48)


def test_without_a_plan_nothing_is_left_to_do(output: Output) -> None:
    assert summarise({0: add_shard(output, 0)}).overall.not_done == 0


def load(output: Output) -> datasets.Dataset:
    return datasets.load_from_disk(output.root)


def test_the_data_set_loads_after_the_first_shard_and_after_all(output: Output) -> None:
    entries = {1: add_shard(output, 1)}
    write_layout(output, entries)
    first = load(output)
    assert first.to_list() == make_rows(1)
    assert first.cache_files == [{"filename": str(shard_file(output, 1))}]
    entries |= {2: add_shard(output, 2), 0: add_shard(output, 0)}
    write_layout(output, entries)
    assert load(output).to_list() == make_rows(0) + make_rows(1) + make_rows(2)
    assert load(output)._fingerprint != first._fingerprint


def test_the_layout_of_the_same_shards_is_the_same(output: Output) -> None:
    entries = {index: add_shard(output, index) for index in range(2)}
    write_layout(output, entries)
    info, state = file_of(output, "dataset_info.json"), file_of(output, "state.json")
    before = (info.read_bytes(), state.read_bytes())
    info.write_bytes(before[0][:100])
    write_layout(output, dict(reversed(entries.items())))
    assert (info.read_bytes(), state.read_bytes()) == before


def test_a_shard_without_rows_does_not_keep_the_data_set_from_loading(output: Output) -> None:
    commit_shard(output, 0, build_shard(0, [make_row("p", "control", "failed")], "accepted", 1.0))
    write_layout(output, read_ledger(output))
    assert len(load(output)) == 0
    add_shard(output, 1)
    write_layout(output, read_ledger(output))
    assert len(load(output)) == 6


def test_no_layout_is_written_without_shards(output: Output) -> None:
    write_layout(output, {})
    assert not file_of(output, "state.json").exists()


JOB: dict[str, Any] = {
    "version": 1,
    "name": "on",
    "seed": 7,
    "prompts": {"source": "prompts.jsonl", "system": "secret system\nschedules:\nmessage"},
    "generate": {"model": "a`b|c\n# d", "samples": {"control": 1, "negative": 1}},
    "schedules": {
        "control": {"base": {"temperature": 0.8}},
        "negative": {"inject": [{"when": {"every": 24}, "temperature": "-inf"}]},
    },
    "output": {"path": "out"},
}


@pytest.fixture
def job() -> Job:
    return build_job(JOB, "job")


def test_the_card_has_front_matter_counts_schedules_and_columns(output: Output, job: Job) -> None:
    entries = {index: add_shard(output, index) for index in range(2)}
    write_card(output, job, entries, {"vllm": "0.11"}, {"smollm2": "Apache-2.0; a weak judge."})
    _, front, body = file_of(output, "README.md").read_text().split("---\n", 2)
    assert YAML(typ="safe").load(front) == {
        "pretty_name": "on",
        "license": "other",
        "tags": ["synthetic", "negative-temperature", "negtemp-data"],
        "configs": [{"config_name": "default", "data_files": "shard-*.arrow"}],
    }
    assert "| negative | 6 | 2 | 2 | 2 | 2 | 3.50 | 6 |" in body
    assert "- `smollm2`: Apache-2.0; a weak judge." in body
    assert "- vllm 0.11" in body
    assert all(f"| `{column}` |" in body for column in COLUMNS)
    schedules = YAML(typ="safe").load(body.split("```yaml\n")[1].split("```")[0])
    assert schedules == job.model_dump(mode="json")["schedules"]


def test_no_text_of_prompts_or_rows_gets_into_the_card(output: Output, job: Job) -> None:
    write_card(output, job, {0: add_shard(output, 0)}, {}, {})
    text = file_of(output, "README.md").read_text()
    assert "secret" not in text
    assert "sea" not in text
    assert "| generator | `a'b\\|c # d` |" in text


def test_a_card_can_be_written_before_the_first_shard(output: Output, job: Job) -> None:
    write_card(output, job, {}, {}, {})
    assert (
        "| **all arms** | 0 | 0 | 0 | 0 | 0 | none | 0 |"
        in file_of(output, "README.md").read_text()
    )
