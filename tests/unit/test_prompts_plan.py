"""The plan: a pure function of prompts and job, complete or absent, read back shard by shard."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negtemp_data.errors import PromptSourceError, StorageError
from negtemp_data.jobspec import Job, build_job, write_job
from negtemp_data.prompts import (
    Plan,
    Prompt,
    load_plan,
    planned_ids,
    prompts_per_shard,
    read_prompts,
    read_shard,
    row_seed,
    write_plan,
)
from negtemp_data.storage import Store, open_store


def make_job(source: Path, shard_rows: int = 8, **prompts: Any) -> Job:
    data = {
        "version": 1,
        "name": "test",
        "prompts": {"source": str(source), **prompts},
        "generate": {"model": "m", "samples": {"control": 1, "negative": 2}},
        "schedules": {"control": {}, "negative": {}},
        "output": {"path": "out", "shard_rows": shard_rows},
    }
    return build_job(data, "test")


def write_prompts(path: Path, n: int) -> Path:
    """`n` prompts; every third is empty."""
    rows = [{"id": f"p{i}", "prompt": f"text {i}" if i % 3 else "", "n": i} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folder(path: Path) -> Store:
    path.mkdir(exist_ok=True)
    return open_store(path, "")


def read_all(files: Store, plan: Plan) -> list[Prompt]:
    return [prompt for shard in range(plan.n_shards) for prompt in read_shard(files, shard)]


def test_row_seed_is_63_bits_and_pinned() -> None:
    # A changed seed would make every finished run impossible to continue.
    assert row_seed(7, "p1", 0) == 4216168102297629350
    seeds = [row_seed(0, f"p{i}", 0) for i in range(1000)]
    assert 2**62 <= max(seeds) < 2**63


def test_row_seed_differs_in_each_of_its_parts() -> None:
    keys = [(0, "1", 1), (0, "1", 2), (0, "2", 1), (1, "1", 1), (0, "11", 1), (0, '1", 1', 1)]
    assert len({row_seed(*key) for key in keys}) == len(keys)
    assert row_seed(0, "1", 1, attempt=1) != row_seed(0, "1", 1)


def test_planned_ids_follow_the_order_of_the_arms() -> None:
    assert list(planned_ids("a/b", {"z": 2, "c": 1})) == [
        ("a/b/z/0", "z", 0),
        ("a/b/z/1", "z", 1),
        ("a/b/c/0", "c", 0),
    ]


@pytest.mark.parametrize(("shard_rows", "expected"), [(1, 1), (3, 1), (5, 1), (6, 2), (300, 100)])
def test_shard_holds_whole_prompts_and_at_least_one(shard_rows: int, expected: int) -> None:
    assert prompts_per_shard(make_job(Path("p"), shard_rows)) == expected


def test_plan_counts_what_it_wrote(tmp_path: Path) -> None:
    job = make_job(write_prompts(tmp_path / "p.jsonl", 5), id="id")
    progress: list[int] = []
    plan = write_plan(job, folder(tmp_path / "run"), progress.append)
    assert plan == Plan(
        n_prompts=5,
        n_bad=2,
        n_shards=3,
        prompts_per_shard=2,
        samples={"control": 1, "negative": 2},
    )
    assert plan.n_rows == 15
    assert [plan.rows_of(shard) for shard in range(3)] == [6, 6, 3]
    assert progress == [2, 4, 5]
    assert load_plan(folder(tmp_path / "run")) == plan
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["plan.json", "prompts.arrow"]


def test_shards_give_back_the_prompts_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "Grüße \x00 \U0001f600"}]
    lines = [{"m": chat, "x": float("nan")}, {"m": [], "y": "\ud800"}, 5, {"m": chat * 2}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    job = make_job(path, messages="m")
    plan = write_plan(job, folder(tmp_path))
    assert read_all(folder(tmp_path), plan) == list(read_prompts(job.prompts))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    lines=st.lists(
        st.binary(max_size=4).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=30
    ),
    shard_rows=st.integers(1, 40),
)
def test_plan_covers_every_prompt_once_and_in_order(
    lines: list[bytes], shard_rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"start\n" + b"\n".join(lines))
    job = make_job(path, shard_rows)
    plan = write_plan(job, folder(tmp_path))
    prompts = read_all(folder(tmp_path), plan)
    assert prompts == list(read_prompts(job.prompts))
    ids = [row.id for prompt in prompts for row in planned_ids(prompt.id, plan.samples)]
    assert len(set(ids)) == len(ids) == plan.n_rows
    assert sum(plan.rows_of(shard) for shard in range(plan.n_shards)) == plan.n_rows
    assert plan.n_bad == sum(prompt.error is not None for prompt in prompts)


def test_plan_is_a_pure_function_of_prompts_and_job(tmp_path: Path) -> None:
    job = make_job(write_prompts(tmp_path / "p.jsonl", 20))
    for run in ("one", "two"):
        write_plan(job, folder(tmp_path / run))
    for name in ("plan.json", "prompts.arrow"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_prompts_file_has_one_batch_a_shard_with_64_bit_offsets(tmp_path: Path) -> None:
    plan = write_plan(make_job(write_prompts(tmp_path / "p.jsonl", 5)), folder(tmp_path))
    with pa.memory_map(str(tmp_path / "prompts.arrow")) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == plan.n_shards
        assert reader.schema.names == ["id", "text", "messages", "source", "error"]
        assert set(reader.schema.types) == {pa.large_string()}


@pytest.mark.parametrize("shard", [-1, 3])
def test_shard_beyond_the_plan_is_an_index_error(shard: int, tmp_path: Path) -> None:
    plan = write_plan(make_job(write_prompts(tmp_path / "p.jsonl", 5)), folder(tmp_path))
    with pytest.raises(IndexError, match=f"3 shards, no shard {shard}"):
        plan.rows_of(shard)
    with pytest.raises(IndexError, match=f"3 shards, no shard {shard}"):
        read_shard(folder(tmp_path), shard)


def test_killed_planning_leaves_no_plan_even_over_an_older_one(tmp_path: Path) -> None:
    job = make_job(write_prompts(tmp_path / "p.jsonl", 9), id="id")
    run = tmp_path / "run"
    write_plan(job, folder(run))
    (tmp_path / "job.yaml").write_text(write_job(job))
    code = (
        "import os, signal, sys, negtemp_data.prompts as prompts\n"
        "from negtemp_data.jobspec import load_job\n"
        "from negtemp_data.storage import open_store\n"
        "kill = lambda n: n > 4 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "prompts.write_plan(load_job(sys.argv[1]), open_store(sys.argv[2], ''), kill)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "job.yaml", run], capture_output=True, check=False
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert load_plan(folder(run)) is None
    plan = write_plan(job, folder(run))
    assert load_plan(folder(run)) == plan and len(read_all(folder(run), plan)) == 9


def test_failed_planning_leaves_nothing_behind(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.jsonl", 9)
    (tmp_path / "b.json").write_text("broken")
    run = tmp_path / "run"
    with pytest.raises(PromptSourceError):
        write_plan(make_job(tmp_path), folder(run))
    assert list(run.iterdir()) == []


def test_plan_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    job = make_job(write_prompts(tmp_path / "p.jsonl", 1))
    with pytest.raises(StorageError, match=r"p\.jsonl: can't be written"):
        write_plan(job, open_store(tmp_path / "p.jsonl", ""))


def test_folder_without_plan_has_none(tmp_path: Path) -> None:
    assert load_plan(folder(tmp_path)) is None
    with pytest.raises(StorageError, match=r"prompts\.arrow: shard 0 can't be read"):
        read_shard(folder(tmp_path), 0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n_prompts": 1}', '{"unknown": 1}'])
def test_damaged_plan_is_a_storage_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(StorageError, match=r"plan\.json: is damaged .* delete it"):
        load_plan(folder(tmp_path))


def test_damaged_prompts_file_is_a_storage_error(tmp_path: Path) -> None:
    write_plan(make_job(write_prompts(tmp_path / "p.jsonl", 5)), folder(tmp_path))
    path = tmp_path / "prompts.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match="shard 0 can't be read"):
        read_shard(folder(tmp_path), 0)
