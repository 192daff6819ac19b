"""Rows become tables and come back unchanged; what does not fit is refused by name."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.errors import StorageError
from negtemp_data.storage import (
    COLUMNS,
    ROW_SCHEMA,
    STATUSES,
    build_shard,
    encode_shard,
    rows_to_table,
)

INJECTION = {
    "position": 3,
    "token_id": 11,
    "displaced_id": 7,
    "temperature": -1.0,
    "support_size": 5,
    "logprob": -2.5,
    "rank": 4,
    "entropy": 1.5,
    "rule": 0,
}


def make_row(prompt_id: str, arm: str, status: str = "accepted") -> dict[str, Any]:
    """A row as generation and judging leave it."""
    return {
        "id": f"{prompt_id}/{arm}/0",
        "prompt_id": prompt_id,
        "arm": arm,
        "sample": 0,
        "seed": 2**62,
        "prompt": "Tell me of the sea.",
        "messages": None,
        "source": '{"topic": "sea"}',
        "completion": "The sea is wide.",
        "token_ids": [1, 2, 3, 4],
        "logprobs": [-0.5, -1.0, -0.25, -2.5],
        "ranks": [1, 2, 1, 4],
        "injections": [INJECTION] if arm == "negative" else [],
        "deferred": 0,
        "finish_reason": "stop",
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "status": status,
        "score": None if status == "failed" else 3.5,
        "scores": [{"criterion": "coherence", "score": 3.5, "mass": 0.125}],
        "checks": [{"name": "length", "passed": True, "detail": "4 tokens"}],
        "rationale": None,
        "error": "the judge said nothing" if status == "failed" else None,
        "attempt": 0,
        "attempts": [],
    }


def make_rows(shard: int, prompts: int = 3) -> list[dict[str, Any]]:
    """The planned rows of a shard: two arms of each prompt, all statuses."""
    return [
        make_row(f"p{shard}-{number}", arm, STATUSES[number % 3])
        for number in range(prompts)
        for arm in ("control", "negative")
    ]


def test_columns_are_described_in_the_order_of_the_schema() -> None:
    assert list(COLUMNS) == ROW_SCHEMA.names


def test_a_row_comes_back_unchanged() -> None:
    rows = make_rows(0)
    assert rows_to_table(rows).to_pylist() == rows


def test_no_rows_make_an_empty_table() -> None:
    table = rows_to_table([])
    assert table.num_rows == 0
    assert table.schema.equals(ROW_SCHEMA)


def test_batches_hold_at_most_64_rows() -> None:
    rows = [make_row(f"p{number}", "control") for number in range(130)]
    table = rows_to_table(rows)
    assert [batch.num_rows for batch in table.to_batches()] == [64, 64, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**63}, "column seed: must be int64"),
        ({"sample": "one"}, "column sample: must be int32; found 'one'"),
        ({"token_ids": [1, 2**31]}, "column token_ids: must be list<item: int32>"),
        ({"completion": "\ud800"}, "column completion: must be string"),
        ({"status": "done"}, "column status: must be accepted, rejected, failed; found 'done'"),
        ({"prompt_id": None}, "column prompt_id: must not be null"),
        ({"surprise": 1}, "missing or unknown: surprise"),
        ({"checks": [{"name": "length"}]}, "column checks: an item must be a dict with the keys"),
        ({"scores": [3.5]}, "column scores: an item must be a dict with the keys"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_column(
    changes: dict[str, Any], message: str
) -> None:
    rows = [make_row("p0", "control"), make_row("p1", "control") | changes]
    with pytest.raises(StorageError) as caught:
        rows_to_table(rows)
    assert message in str(caught.value)
    assert "'p1/control/0'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_without_one_of_the_columns_is_refused() -> None:
    row = make_row("p0", "control")
    del row["ranks"]
    with pytest.raises(StorageError, match="missing or unknown: ranks"):
        rows_to_table([row])


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Any value of an Arrow type, null included."""
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({field.name: _values(field.type) for field in kind})
    if pa.types.is_list(kind):
        return st.none() | st.lists(_values(kind.value_type), max_size=3)
    if pa.types.is_integer(kind):
        bound = 2 ** (kind.bit_width - 1)
        return st.none() | st.integers(-bound, bound - 1)
    if pa.types.is_floating(kind):
        return st.none() | st.floats(width=32, allow_nan=False)
    if pa.types.is_boolean(kind):
        return st.none() | st.booleans()
    return st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


ROWS = st.fixed_dictionaries(
    {field.name: _values(field.type) for field in ROW_SCHEMA}
    | {name: st.text(st.characters(exclude_categories=["Cs"])) for name in ("id", "prompt_id")}
    | {"arm": st.sampled_from(["control", "negative"]), "status": st.sampled_from(STATUSES)}
)


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=5))
def test_any_rows_come_back_from_an_encoded_shard(rows: list[dict[str, Any]]) -> None:
    data = encode_shard(build_shard(0, rows, "all", 1.0))
    with pa.ipc.open_stream(data) as reader:
        assert reader.read_all().to_pylist() == rows
