"""Shards: made from rows, encoded as Arrow streams, committed once, read back.

The file of a shard is its commit: it appears whole, the first one wins, and it never changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from negtemp_data.errors import StorageError
from negtemp_data.storage.account import account_rows, attach_account, read_account
from negtemp_data.storage.output import Output, shard_name
from negtemp_data.storage.schema import BATCH_ROWS, ROW_SCHEMA, rows_to_table

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Marks the end of an Arrow stream. Readers take a stream without it too, so that one cut between
two batches would pass for whole. Source: Arrow columnar format 1.5, IPC streaming format."""


def build_shard(
    index: int,
    planned: Sequence[Mapping[str, Any]],
    keep: Literal["all", "accepted"],
    seconds: float,
) -> pa.Table:
    """The table of a shard, with the account of all its planned rows.

    Args:
        index: The shard.
        planned: Its rows, one for each planned sample, in the plan's order.
        keep: `accepted` leaves other rows out of the table; they are still accounted for.
        seconds: Time that the rows took.

    Raises:
        StorageError: A row does not fit the schema.
    """
    # Rows that are left out have to fit as well: they are counted.
    table = rows_to_table(planned)
    if keep == "accepted":
        table = table.filter(pc.equal(table["status"], "accepted"))
    return attach_account(table, account_rows(index, planned, table.num_rows, seconds))


def encode_shard(table: pa.Table) -> bytes:
    """`table` as an uncompressed Arrow stream, the one form that can be memory-mapped.

    Source: datasets 5.2, table.py, MemoryMappedTable.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def commit_shard(output: Output, index: int, table: pa.Table) -> bool:
    """Commits a table of `build_shard`, unless the shard is committed already.

    Any number of processes may try; the first one wins.

    Returns:
        Whether this call committed it. False: the table is discarded.

    Raises:
        StorageError: The table is not that of the shard, or the disk refused.
    """
    where = output.store.where(shard_name(index))
    account = read_account(table.schema, where)
    fits = table.schema.equals(ROW_SCHEMA) and account.rows == table.num_rows
    if account.shard != index or not fits:
        raise StorageError(
            f"{where}: is offered {table.num_rows} rows with the account of {account.rows} rows of "
            f"shard {account.shard}; commit what build_shard returns, unchanged."
        )
    return output.store.create(shard_name(index), encode_shard(table))


def load_shard(output: Output, index: int) -> pa.Buffer:
    """The bytes of a committed shard.

    Raises:
        StorageError: The file can't be read.
    """
    try:
        return output.store.load(shard_name(index))
    except OSError as error:
        raise unreadable_shard(output, index, error) from error


def read_schema(output: Output, index: int, data: pa.Buffer | None = None) -> pa.Schema:
    """Schema of a committed shard, with its metadata; `data` saves loading it again.

    Raises:
        StorageError: The file is missing or damaged.
    """
    try:
        with _open_stream(data or load_shard(output, index)) as reader:
            return reader.schema
    except (pa.ArrowException, OSError) as error:
        raise unreadable_shard(output, index, error) from error


def read_batches(
    output: Output, index: int, data: pa.Buffer | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of a committed shard, at most `BATCH_ROWS` at a time; `data` saves loading it again.

    Raises:
        StorageError: The file is missing or damaged.
    """
    try:
        with _open_stream(data or load_shard(output, index)) as reader:
            yield from reader
    except (pa.ArrowException, OSError) as error:
        raise unreadable_shard(output, index, error) from error


def unreadable_shard(output: Output, index: int, reason: object) -> StorageError:
    """The error for a shard that can't be read because of `reason`."""
    where = output.store.where(shard_name(index))
    # Arrow raises OSError for damaged data too, but without an errno.
    if isinstance(reason, OSError) and reason.errno:
        return StorageError(f"{where}: can't be read: {reason.strerror}.")
    return StorageError(
        f"{where}: the shard is damaged ({reason}); delete this file, then "
        f"`negtemp resume {output.root}` makes its rows again."
    )


@contextmanager
def _open_stream(data: pa.Buffer) -> Iterator[pa.RecordBatchStreamReader]:
    if data[-len(_END_OF_STREAM) :].to_pybytes() != _END_OF_STREAM:
        raise pa.ArrowInvalid("its end is missing")
    with pa.ipc.open_stream(data) as reader:
        yield reader
