"""The row of the data set: its Arrow schema, what each column means, and rows becoming a table.

Knows nothing of files: `shards` writes the tables.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from negtemp_data.errors import StorageError, quote

Status = Literal["accepted", "rejected", "failed"]
"""What became of a planned row: it was made and passed, was made and did not pass, was not made."""

STATUSES: tuple[Status, ...] = ("accepted", "rejected", "failed")

BATCH_ROWS = 64
"""Most rows of a record batch: text of 32 MiB a row still fits the 2 GiB of 32-bit offsets."""

_MESSAGE = pa.struct({"role": pa.string(), "content": pa.string()})

_INJECTION = pa.struct(
    {
        "position": pa.int32(),
        "token_id": pa.int32(),
        "displaced_id": pa.int32(),
        "temperature": pa.float32(),
        "support_size": pa.int32(),
        "logprob": pa.float32(),
        "rank": pa.int32(),
        "entropy": pa.float32(),
        "rule": pa.int32(),
    }
)

_SCORE = pa.struct({"criterion": pa.string(), "score": pa.float32(), "mass": pa.float32()})

_CHECK = pa.struct({"name": pa.string(), "passed": pa.bool_(), "detail": pa.string()})

_ATTEMPT = pa.struct(
    {
        "attempt": pa.int32(),
        "seed": pa.int64(),
        "completion": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "status": pa.string(),
        "score": pa.float32(),
        "error": pa.string(),
    }
)

ATTEMPT_COLUMNS = tuple(_ATTEMPT.names)
"""What is kept of an attempt that was rejected, by its column in the row."""

ROW_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt_id": pa.string(),
        "arm": pa.string(),
        "sample": pa.int32(),
        "seed": pa.int64(),
        "prompt": pa.string(),
        "messages": pa.list_(_MESSAGE),
        "source": pa.string(),
        "completion": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
        "ranks": pa.list_(pa.int32()),
        "injections": pa.list_(_INJECTION),
        "deferred": pa.int32(),
        "finish_reason": pa.string(),
        "prompt_tokens": pa.int32(),
        "completion_tokens": pa.int32(),
        "status": pa.string(),
        "score": pa.float32(),
        "scores": pa.list_(_SCORE),
        "checks": pa.list_(_CHECK),
        "rationale": pa.string(),
        "error": pa.string(),
        "attempt": pa.int32(),
        "attempts": pa.list_(_ATTEMPT),
    }
)
"""One row per planned sample. All but id, prompt_id, arm and status may be null: a failed row has
what was known of it."""

COLUMNS: dict[str, str] = {
    "id": "Id of the row: prompt id, arm and sample index, joined by `/`.",
    "prompt_id": "Id of the prompt.",
    "arm": "Name of the schedule that sampled the completion.",
    "sample": "Index of the sample among those of its prompt and arm, from 0.",
    "seed": "Seed of the row's random numbers; the same in all arms, so twins share it.",
    "prompt": "Text of the prompt; null where the prompt is a chat.",
    "messages": "Chat that is the prompt, as role and content; null where the prompt is text.",
    "source": "The other columns of the prompt's input row, as a JSON object; null where none.",
    "completion": "Generated text.",
    "token_ids": "Generated tokens.",
    "logprobs": "Log-probability of each token at T = 1, before any injection.",
    "ranks": "Rank of each token at T = 1, before any injection; 1 is the most likely.",
    "injections": (
        "Injected tokens: position, token_id, displaced_id (the most likely token instead), "
        "temperature, support_size, logprob, rank, entropy (nats), rule (its index)."
    ),
    "deferred": "Injections that had to wait for a step with at least two candidates.",
    "finish_reason": "Why generation ended, such as stop or length.",
    "prompt_tokens": "Number of prompt tokens.",
    "completion_tokens": "Number of generated tokens.",
    "status": "accepted, rejected or failed.",
    "score": "The judge's weighted mean score; null where nothing judged the row.",
    "scores": "Score of each criterion, and the probability mass outside the scale's labels.",
    "checks": "Outcome of each check: name, passed, detail.",
    "rationale": "The judge's written reasons, where it was asked for them.",
    "error": "Why the row failed; null for other rows.",
    "attempt": "Number of the attempt that made this row, from 0.",
    "attempts": "Earlier attempts at this row, all rejected.",
}
"""What each column holds, in one line, in the schema's order."""

_ITEM_KEYS = {
    field.name: {item.name for item in field.type.value_type}
    for field in ROW_SCHEMA
    if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)
}
"""Keys of the items of each column that is a list of structs."""

_UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What Arrow raises for a value that does not fit its column."""


def generated_tokens(row: Mapping[str, Any]) -> int:
    """Tokens generated for a row, those of earlier attempts included."""
    earlier = sum(len(attempt["token_ids"] or ()) for attempt in row["attempts"] or ())
    return earlier + int(row["completion_tokens"] or 0)


def rows_to_table(rows: Iterable[Mapping[str, Any]], *, may_lack_verdict: bool = False) -> pa.Table:
    """The rows as a table of `ROW_SCHEMA`, in batches of at most `BATCH_ROWS` rows.

    Every row has exactly the schema's columns, and every struct exactly its keys; None is null.

    Args:
        rows: The rows.
        may_lack_verdict: Whether a row's status may be None.

    Raises:
        StorageError: A row does not fit; the message names row and column.
    """
    allowed = (*STATUSES, None) if may_lack_verdict else STATUSES
    batches = [_build_batch(chunk, allowed) for chunk in _cut(rows)]
    return pa.Table.from_batches(batches, schema=ROW_SCHEMA)


def _cut(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, BATCH_ROWS)):
        yield chunk


def _build_batch(
    rows: list[Mapping[str, Any]], statuses: Sequence[Status | None]
) -> pa.RecordBatch:
    for row in rows:
        _check_row(row, statuses)
    try:
        return pa.RecordBatch.from_pylist(rows, schema=ROW_SCHEMA)
    except _UNFIT as error:
        raise _mismatch(rows, error) from error


def _check_row(row: Mapping[str, Any], statuses: Sequence[Status | None]) -> None:
    """Refuses what Arrow would not: unknown keys it drops, missing ones it fills with nulls."""
    if row.keys() != COLUMNS.keys():
        differing = sorted(row.keys() ^ COLUMNS.keys())
        raise StorageError(
            f"row {quote(row.get('id'))}: its columns are not those of the schema; missing or "
            f"unknown: {', '.join(differing)}."
        )
    for column in ("id", "prompt_id", "arm"):
        if row[column] is None:
            raise StorageError(f"row {quote(row['id'])}, column {column}: must not be null.")
    if row["status"] not in statuses:
        raise StorageError(
            f"row {quote(row['id'])}, column status: must be {', '.join(STATUSES)}; found "
            f"{quote(row['status'])}."
        )
    for column, keys in _ITEM_KEYS.items():
        for item in row[column] or ():
            if not isinstance(item, dict) or item.keys() != keys:
                raise StorageError(
                    f"row {quote(row['id'])}, column {column}: an item must be a dict with the "
                    f"keys {', '.join(sorted(keys))}; found {quote(item)}."
                )


def _mismatch(rows: list[Mapping[str, Any]], error: Exception) -> StorageError:
    """Arrow names neither row nor column, so the first value that does not fit is looked for."""
    for row in rows:
        for field in ROW_SCHEMA:
            try:
                pa.array([row[field.name]], field.type)
            except _UNFIT as reason:
                return StorageError(
                    f"row {quote(row['id'])}, column {field.name}: must be {field.type}; found "
                    f"{quote(row[field.name])} ({reason})."
                )
    return StorageError(f"rows do not fit the schema: {error}.")
