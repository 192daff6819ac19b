"""Opening an output for datasets, pyarrow, polars and torch: the same rows, mapped, not copied."""

import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

import negtemp_data
from negtemp_data.errors import ExportError, OutputError
from negtemp_data.storage import Output
from small_output import make_sample, shard_file, write_output


def make_shard(shard: int, n: int = 70) -> list[dict[str, Any]]:
    return [
        make_sample(f"p{shard}-{i}", "negative", positions=[1], token_ids=range(i, i + 4))
        for i in range(n)
    ]


ROWS = [row for shard in range(3) for row in make_shard(shard)]
IDS = [row["id"] for row in ROWS]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    folder = tmp_path_factory.mktemp("reader") / "out"
    return write_output(folder, [make_shard(shard) for shard in range(3)])


def test_every_library_sees_the_same_rows(output: Output) -> None:
    opened = negtemp_data.open_dataset(output.root)
    assert opened.arrow().to_pylist() == ROWS
    assert opened.hf().to_list() == ROWS
    assert opened.polars()["id"].to_list() == IDS
    assert opened.polars()["token_ids"].to_list() == [row["token_ids"] for row in ROWS]
    assert [row["id"] for row in opened.torch()] == IDS


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Addresses at which this process has mapped a file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(path.name)]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def is_mapped(address: int, path: Path) -> bool:
    return any(start <= address < end for start, end in mapped_ranges(path))


def test_arrow_and_hugging_face_take_no_memory_of_their_own(output: Output) -> None:
    before = pa.total_allocated_bytes()
    opened = negtemp_data.open_dataset(output.root)
    tables = [opened.arrow(), opened.hf().data.table]
    assert pa.total_allocated_bytes() == before
    for table in tables:
        values = table["token_ids"].chunk(0).values
        assert is_mapped(values.buffers()[1].address, shard_file(output, 0))


@pytest.mark.parametrize("column", ["seed", "score", "token_ids", "completion"])
def test_polars_leaves_numbers_and_texts_in_the_file(output: Output, column: str) -> None:
    chunk = negtemp_data.open_dataset(output.root).polars()[column].get_chunks()[0]
    *_, data = chunk.to_arrow(compat_level=polars.CompatLevel.newest()).buffers()
    assert is_mapped(data.address, shard_file(output, 0))


def test_tensors_lie_in_the_file(output: Output) -> None:
    row = next(iter(negtemp_data.open_dataset(output.root).torch(["token_ids"])))
    assert is_mapped(row["token_ids"].data_ptr(), shard_file(output, 0))


def test_lists_of_numbers_are_tensors_and_all_else_is_python(output: Output) -> None:
    row = next(iter(negtemp_data.open_dataset(output.root).torch()))
    assert torch.equal(row["token_ids"], torch.tensor([0, 1, 2, 3], dtype=torch.int32))
    assert row["logprobs"].tolist() == []
    assert row["score"] == 3.0
    assert row["injections"][0]["token_id"] == 1
    assert row.keys() == ROWS[0].keys()


def test_writing_to_a_tensor_does_not_change_the_file(output: Output) -> None:
    before = shard_file(output, 0).read_bytes()
    row = next(iter(negtemp_data.open_dataset(output.root).torch(["token_ids"])))
    row["token_ids"] += 100
    assert row["token_ids"].tolist() == [100, 101, 102, 103]
    assert shard_file(output, 0).read_bytes() == before


def ids_of(rows: Any) -> list[str]:
    return [row["id"] for row in rows]


def test_a_seed_shuffles_shards_and_rows_anew_in_each_epoch(output: Output) -> None:
    rows = negtemp_data.open_dataset(output.root).torch(["id"], seed=1)
    first, second = ids_of(rows), ids_of(rows)
    assert sorted(first) == sorted(second) == sorted(IDS)
    assert first not in (second, IDS)
    # By shard: one shard's rows come together.
    shards = [row_id.partition("-")[0] for row_id in first]
    assert sum(a != b for a, b in pairwise(shards)) == 2
    assert ids_of(negtemp_data.open_dataset(output.root).torch(["id"], seed=1)) == first
    assert ids_of(negtemp_data.open_dataset(output.root).torch(["id"], seed=2)) != first


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("n_read", [0, 1, 69, 70, 71, 140, 209, 210])
def test_a_saved_position_goes_on_after_the_last_row(
    output: Output, seed: int | None, n_read: int
) -> None:
    opened = negtemp_data.open_dataset(output.root)
    whole = opened.torch(["id"], seed)
    epochs = [ids_of(whole), ids_of(whole)]
    begun = opened.torch(["id"], seed)
    iterator = iter(begun)
    assert ids_of(islice(iterator, n_read)) == epochs[0][:n_read]
    resumed = opened.torch(["id"], seed)
    resumed.load_state_dict(begun.state_dict())
    assert ids_of(resumed) == epochs[0][n_read:]
    assert ids_of(resumed) == epochs[1]


def test_an_iteration_that_was_broken_off_starts_over(output: Output) -> None:
    rows = negtemp_data.open_dataset(output.root).torch(["id"])
    next(iter(rows))
    assert ids_of(rows) == IDS


def test_workers_share_the_shards(output: Output) -> None:
    rows = negtemp_data.open_dataset(output.root).torch(["id"], seed=1)
    loader = DataLoader(rows, batch_size=None, num_workers=2)
    assert sorted(ids_of(loader)) == sorted(IDS)


def test_a_shard_that_kept_no_row_is_passed_over(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out", [[], make_shard(1, 3), []])
    opened = negtemp_data.open_dataset(output.root)
    expected = [row["id"] for row in make_shard(1, 3)]
    assert ids_of(opened.torch(["id"], seed=1)) != []
    assert opened.hf()["id"][:] == expected
    assert opened.arrow()["id"].to_pylist() == opened.polars()["id"].to_list() == expected


def test_what_can_not_be_opened_is_refused(output: Output, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no negtemp output"):
        negtemp_data.open_dataset(tmp_path)
    empty = write_output(tmp_path / "out", [])
    with pytest.raises(ExportError, match="no shard is committed yet"):
        negtemp_data.open_dataset(empty.root)
    with pytest.raises(ExportError, match="column 'text': must be one of id, prompt_id"):
        negtemp_data.open_dataset(output.root).torch(["text"])


def test_opening_loads_nothing_that_is_not_used(output: Output) -> None:
    code = (
        "import sys, negtemp_data\n"
        f"negtemp_data.open_dataset({output.root!r}).arrow()\n"
        "import negtemp_data.export\n"
        "heavy = {'torch', 'ray', 'vllm', 'datasets', 'polars', 'transformers', 'trl'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
