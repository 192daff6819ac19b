"""Reading rows back, for people and tools that look at a few of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from negtemp_data.storage.output import Output
from negtemp_data.storage.shards import read_batches


def read_rows(
    output: Output,
    *,
    arm: str | None = None,
    status: str | None = None,
    prompt_id: str | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Committed rows in order, one batch in memory at a time; None selects all rows or columns.

    Raises:
        StorageError: A shard is damaged.
    """
    wanted = {
        column: value
        for column, value in (("arm", arm), ("status", status), ("prompt_id", prompt_id))
        if value is not None
    }
    for shard in output.committed_shards():
        for batch in read_batches(output, shard):
            table = pa.Table.from_batches([batch])
            for column, value in wanted.items():
                table = table.filter(pc.field(column) == value)
            yield from (table.select(columns) if columns else table).to_pylist()
